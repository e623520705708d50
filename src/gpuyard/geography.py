"""Where regions lie: their country and their place on the globe, for all the ways in which clouds name them.

A region is an id of the cloud's own (``ewr``, ``us-west-1``, ``US-KS-2``) or a place with its country (``Texas, US``).
Places are those of the named city, else the middle of the state or country: near enough to tell which of two regions
lies nearer to a bucket, and nothing else.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

_EARTH_KM = 6371.0


@dataclass(frozen=True, slots=True)
class Spot:
    """A place: its country as ISO 3166 has it in two letters, and where it is, in degrees."""

    country: str
    latitude: float
    longitude: float

    def km_to(self, other: Spot) -> float:
        """Return the distance along the ground, in kilometres."""
        here, there = math.radians(self.latitude), math.radians(other.latitude)
        across = math.radians(other.longitude - self.longitude)
        half = math.sin((there - here) / 2) ** 2 + math.cos(here) * math.cos(there) * math.sin(across / 2) ** 2
        return 2 * _EARTH_KM * math.asin(math.sqrt(half))


@lru_cache(maxsize=4096)
def spot(region: str, provider: str = "") -> Spot | None:
    """Return where ``region`` lies, as ``provider`` means it; ``None``: not known."""
    name = region.strip().lower()
    for table in (_OF_PROVIDER.get(provider, {}), _REGIONS):
        if name in table:
            return table[name]
    # "Texas, US", "Sweden, SE", "US-TX-3", "EU-RO-1", "CA-MTL-2", "EUR-IS-1": country and part of it, in either order.
    parts = [part for part in re.split(r"[,\-_/]\s*", name) if part and not part.isdigit()]
    states = [_STATES[part] for part in parts if part in _STATES]
    countries = [part for part in parts if part in _COUNTRIES]
    for state in states:
        if state.country.lower() in countries:
            return state
    # A continent's code may stand before the country's, and never after it.
    return _COUNTRIES[countries[-1]] if countries else None


@lru_cache(maxsize=64)
def spot_of_bucket(region: str, endpoint: str) -> Spot | None:
    """Return where a bucket lies: what its endpoint says (``ewr1.vultrobjects.com``), else its region."""
    host = endpoint.partition("://")[2] or endpoint
    labels = host.partition("/")[0].partition(":")[0].split(".")
    named = (_REGIONS.get(label) or _REGIONS.get(label.rstrip("0123456789")) for label in labels)
    return next((place for place in named if place), None) or spot(region)


def _spots(text: str) -> dict[str, Spot]:
    """Return the spots of a table whose entries are ``names country latitude longitude``, names apart by ``/``."""
    found = {}
    for entry in text.split(";"):
        if words := entry.split():
            names, country, latitude, longitude = words
            place = Spot(country, float(latitude), float(longitude))
            found.update(dict.fromkeys((name.replace("_", " ") for name in names.split("/")), place))
    return found


_COUNTRIES = {
    country.lower(): Spot(country, float(latitude), float(longitude))
    for country, latitude, longitude in (
        entry.split()
        for entry in """
        AE 24 54;AR -34 -64;AT 47 14;AU -33 149;BE 50.5 4.5;BG 43 25;BR -23 -47;CA 45.5 -74;CH 47 8;CL -33 -71;
        CN 31 121;CO 4.6 -74;CZ 50 15;DE 50.5 9;DK 56 10;EE 59 25;ES 40 -4;FI 61 25;FR 48 2.5;GB 52 -1;GR 38 24;
        HK 22 114;HR 45.5 16;HU 47 19;ID -6 107;IE 53 -7;IL 32 35;IN 19 73;IS 64.5 -20;IT 45 10;JP 35.5 139;KR 37.5 127;
        LT 55 24;LU 49.6 6;LV 57 24;MD 47 29;MX 20 -100;MY 3 102;NL 52 5;NO 60 9;NZ -37 175;PH 14.6 121;PL 52 19;
        PT 39 -9;RO 45 25;RS 44 21;RU 55.7 37.6;SA 25 46;SE 59 16;SG 1.3 103.8;SI 46 14.5;SK 48.5 19;TH 14 100;TR 40 30;
        TW 25 121.5;UA 50 30;UK 52 -1;US 39 -97;VN 16 107;ZA -27 28
        """.replace("\n", "").split(";")
    )
}
_COUNTRIES["uk"] = _COUNTRIES["gb"]

_STATES = _spots(
    """
    alabama/al US 32.8 -86.8;arizona/az US 33.4 -112;arkansas/ar US 34.8 -92.4;california/ca US 37 -120;
    colorado/co US 39.7 -105;connecticut/ct US 41.6 -72.7;delaware/de US 39 -75.5;florida/fl US 27.7 -81.6;
    georgia/ga US 33.7 -84.4;idaho/id US 43.6 -116;illinois/il US 41.8 -88;indiana/in US 39.8 -86;iowa/ia US 42 -93.5;
    kansas/ks US 38.7 -97;kentucky/ky US 37.8 -85;louisiana/la US 31 -92;maine/me US 44.5 -69.5;
    maryland/md US 39.1 -76.8;massachusetts/ma US 42.3 -71.5;michigan/mi US 42.7 -84.5;minnesota/mn US 45 -93.3;
    mississippi/ms US 32.7 -89.7;missouri/mo US 38.5 -92;montana/mt US 46.8 -110;nebraska/ne US 41.2 -96;
    nevada/nv US 36.2 -115;new_hampshire/nh US 43 -71.5;new_jersey/nj US 40.7 -74.2;new_mexico/nm US 35 -106.6;
    new_york/ny US 41 -74;north_carolina/nc US 35.5 -80;north_dakota/nd US 47 -100;ohio/oh US 40 -83;
    oklahoma/ok US 35.5 -97;oregon/or US 45.5 -121;pennsylvania/pa US 40.5 -77;rhode_island/ri US 41.7 -71.5;
    south_carolina/sc US 33.9 -81;south_dakota/sd US 44 -100;tennessee/tn US 36 -86.7;texas/tx US 32 -97;
    utah/ut US 40.6 -112;vermont/vt US 44 -72.7;virginia/va US 39 -77.5;washington/wa US 47.4 -121;
    west_virginia/wv US 38.6 -80.6;wisconsin/wi US 43 -89;wyoming/wy US 41.1 -105;
    quebec/mtl/montreal CA 45.5 -73.6;ontario/tor/toronto CA 43.7 -79.4;british_columbia/vancouver CA 49.3 -123;
    alberta/calgary CA 51 -114
    """
)

# What Vultr, Amazon's S3, Backblaze B2 and Lambda (where it agrees with Amazon) call their regions.
_REGIONS = _spots(
    """
    ams NL 52.4 4.9;atl US 33.7 -84.4;blr IN 13 77.6;bom IN 19.1 72.9;cdg FR 49 2.5;del IN 28.6 77.2;dfw US 32.9 -97;
    ewr US 40.7 -74.2;fra DE 50.1 8.7;hnl US 21.3 -157.9;icn KR 37.5 126.5;itm JP 34.8 135.4;jnb ZA -26.1 28.2;
    lax US 34 -118.4;lhr GB 51.5 -0.5;mad ES 40.5 -3.6;man GB 53.4 -2.3;mel AU -37.7 144.8;mex MX 19.4 -99.1;
    mia US 25.8 -80.3;nrt JP 35.8 140.4;ord US 42 -87.9;sao BR -23.6 -46.7;scl CL -33.4 -70.8;sea US 47.4 -122.3;
    sgp SG 1.3 103.9;sjc US 37.4 -121.9;sto SE 59.6 17.9;syd AU -33.9 151.2;tlv IL 32 34.9;waw PL 52.2 21;
    yto CA 43.7 -79.6;
    us-east-1 US 39 -77.5;us-east-2 US 40 -83;us-west-1 US 37.4 -121.9;us-west-2 US 45.5 -121;
    ca-central-1 CA 45.5 -73.6;ca-west-1 CA 51 -114;eu-west-1 IE 53.3 -6.3;eu-west-2 GB 51.5 -0.1;
    eu-west-3 FR 48.9 2.4;eu-central-1 DE 50.1 8.7;eu-central-2 CH 47.4 8.5;eu-north-1 SE 59.3 18;
    eu-south-1 IT 45.5 9.2;
    eu-south-2 ES 41.6 -0.9;ap-south-1 IN 19.1 72.9;ap-south-2 IN 17.4 78.5;ap-east-1 HK 22.3 114.2;
    ap-northeast-1 JP 35.7 139.7;ap-northeast-2 KR 37.5 127;ap-northeast-3 JP 34.7 135.5;ap-southeast-1 SG 1.3 103.8;
    ap-southeast-2 AU -33.9 151.2;ap-southeast-3 ID -6.2 106.8;ap-southeast-4 AU -37.8 145;sa-east-1 BR -23.5 -46.6;
    af-south-1 ZA -33.9 18.4;me-south-1 BH 26 50.5;me-central-1 AE 24.5 54.4;il-central-1 IL 32 34.8;
    us-west-000/us-west-001/us-west-002 US 38.6 -121.5;us-west-004 US 33.4 -112;us-east-005 US 39 -77.4;
    eu-central-003 NL 52.4 4.9;ca-east-006 CA 43.7 -79.4;
    us-south-1/us-south-2/us-south-3 US 32 -97;us-midwest-1/us-midwest-2 US 41.9 -87.6;us-west-3 US 40.6 -112;
    us-east-3 US 39 -77.5;europe-central-1 DE 50.1 8.7;asia-south-1 IN 19.1 72.9;asia-northeast-1 JP 34.7 135.5;
    asia-northeast-2 JP 35.7 139.7;australia-east-1 AU -33.9 151.2;me-west-1 IL 32 34.8
    """
)

# Where a cloud means another place by a name than the table above.
_OF_PROVIDER = {"lambda": _spots("us-west-2 US 33.4 -112")}
