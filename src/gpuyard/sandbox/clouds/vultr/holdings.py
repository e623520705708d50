"""Vultr's HTTP API v2 for what an account holds beside instances: block storage, snapshots, firewall groups.

Facts, traps and error texts: docs/reference/vultr.md. STAND-IN: a volume that is attached is written down, and the box
gets no disk; a snapshot holds nothing; a firewall group filters nothing.
"""

from __future__ import annotations

import ipaddress
import secrets
import uuid
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gpuyard.sandbox import catalogue, fields
from gpuyard.sandbox.bill import HOURS_PER_MONTH, amount
from gpuyard.sandbox.cloud import Cloud
from gpuyard.sandbox.clouds.vultr.api import Handler, VultrError, date, page
from gpuyard.sandbox.fields import BadField
from gpuyard.sandbox.model import Holding, Json, Phase, Rental
from gpuyard.sandbox.web import read_json

_TEXT_MAX = 255
_TIERS = {"high_perf": (0.10, 10, 10_000), "storage_opt": (0.025, 40, 40_000)}
"""By block type: $ per GB and month, the least and the most GB."""
_SNAPSHOT_USD_PER_GB_MONTH = 0.05
_GIB = 2**30
_PROTOCOLS = ("icmp", "tcp", "udp", "gre", "esp", "ah")
_WITH_PORTS = ("tcp", "udp")
_MOST_RULES = 50
_HIGHEST_PORT = 65_535


class VultrHoldings:
    """The routes below ``/v2`` for block storage, snapshots and firewall groups."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def routes(self, route: Callable[[str, str, Handler], Route]) -> list[Route]:
        """Return the routes, each made by ``route`` of the path, the method and the handler."""
        block, group = "/blocks/{id}", "/firewalls/{id}"
        rule = f"{group}/rules/{{rule}}"
        return [
            # Else the last word would be taken for an id.
            route("/blocks/snapshots", "GET", self.not_emulated),
            route("/blocks/snapshots", "POST", self.not_emulated),
            route("/snapshots/create-from-url", "POST", self.not_emulated),
            route("/blocks", "GET", self.blocks),
            route("/blocks", "POST", self.create_block),
            route(block, "GET", self.show_block),
            route(block, "PATCH", self.change_block),
            route(block, "DELETE", self.delete_block),
            route(f"{block}/attach", "POST", self.attach),
            route(f"{block}/detach", "POST", self.detach),
            route("/snapshots", "GET", self.snapshots),
            route("/snapshots", "POST", self.create_snapshot),
            route("/snapshots/{id}", "GET", self.show_snapshot),
            route("/snapshots/{id}", "PUT", self.change_snapshot),
            route("/snapshots/{id}", "DELETE", self.delete_snapshot),
            route("/firewalls", "GET", self.groups),
            route("/firewalls", "POST", self.create_group),
            route(group, "GET", self.show_group),
            route(group, "PUT", self.change_group),
            route(group, "DELETE", self.delete_group),
            route(f"{group}/rules", "GET", self.rules),
            route(f"{group}/rules", "POST", self.add_rule),
            route(rule, "GET", self.show_rule),
            route(rule, "DELETE", self.delete_rule),
        ]

    async def not_emulated(self, request: Request) -> Response:
        """Answer a route that the real API has and the sandbox has not."""
        raise HTTPException(501)

    def _holding(self, request: Request, kind: str, title: str) -> Holding:
        for holding in self._cloud.world.held("vultr", kind):
            if holding.id == request.path_params["id"]:
                return holding
        raise VultrError(404, f"Invalid {title} ID.")

    def _new(self, kind: str, label: str, region: str, size_gb: float, record: Json) -> Holding:
        now = self._cloud.clock()
        return Holding("vultr", kind, str(uuid.uuid4()), label, now, region, size_gb, item_record=record)

    def _begin(self, holding: Holding, usd_per_month: float, row: Json, status: int) -> Response:
        """Answer what bills from now on."""
        _charge(holding, usd_per_month, self._cloud.clock())
        self._cloud.hold(holding)
        return JSONResponse(row, status)

    def _is_made(self, holding: Holding) -> bool:
        """Return whether it is past its making, which takes as long as a boot."""
        return self._cloud.clock() - holding.created_at >= self._cloud.settings.boot_seconds

    # -- block storage -------------------------------------------------------------------------------------------------

    async def blocks(self, request: Request) -> Response:
        """Answer one page of the volumes."""
        return page(request, "blocks", [self.block_row(block) for block in self._cloud.world.held("vultr", "volume")])

    async def create_block(self, request: Request) -> Response:
        """Answer a new volume. Everything is checked before anything is made."""
        body = await read_json(request)
        fields.only(body, {"region", "size_gb", "label", "block_type"})
        region = fields.text(body, "region", _TEXT_MAX)
        options = next((known["options"] for known in catalogue.vultr_regions() if known["id"] == region), None)
        if options is None:
            raise VultrError(400, "Invalid location chosen.")
        tier = fields.text(body, "block_type", _TEXT_MAX) or "high_perf"
        if tier not in _TIERS:
            raise VultrError(400, f"Invalid block_type, must be one of: {', '.join(_TIERS)}")
        size, label = _size(body, tier), fields.text(body, "label", _TEXT_MAX)
        if f"block_storage_{tier}" not in options:
            raise VultrError(400, "Unable to find a block storage cluster in that location")
        record = {"block_type": tier, "mount_id": f"{region}-{secrets.token_hex(7)}", "attached_to": ""}
        block = self._new("volume", label, region, size, record)
        return self._begin(block, size * _TIERS[tier][0], {"block": self.block_row(block)}, 202)

    async def show_block(self, request: Request) -> Response:
        """Answer one volume; 404 where it was deleted."""
        return JSONResponse({"block": self.block_row(self._block(request))})

    async def change_block(self, request: Request) -> Response:
        """Answer a larger volume, or another label."""
        block, body = self._block(request), await read_json(request)
        fields.only(body, {"size_gb", "label"})
        tier, now = block.item_record["block_type"], self._cloud.clock()
        label = fields.text(body, "label", _TEXT_MAX)
        size = block.size_gb if body.get("size_gb") is None else _size(body, tier)
        if size < block.size_gb:
            raise VultrError(400, "New size must be larger than the current size")
        if "label" in body:
            block.label = label
        if size > block.size_gb:
            block.size_gb = size
            block.close_lines(now)
            _charge(block, size * _TIERS[tier][0], now)
        self._cloud.save()
        return Response(status_code=204)

    async def delete_block(self, request: Request) -> Response:
        """Answer the end of a volume, which no machine may have."""
        block = self._block(request)
        if self._instance(block):
            raise VultrError(400, "Block storage is attached to a server, detach it first")
        await self._cloud.release(block)
        return Response(status_code=204)

    async def attach(self, request: Request) -> Response:
        """Answer a volume at an instance; without ``live`` the instance is started again."""
        block, body = self._block(request), await read_json(request)
        fields.only(body, {"instance_id", "live"})
        live = _flag(body, "live")
        rental = self._cloud.world.find("vultr", fields.text(body, "instance_id", _TEXT_MAX))
        if rental is None:
            raise VultrError(400, "Invalid instance ID.")
        if self._instance(block):
            raise VultrError(400, "Block storage is already attached to another server")
        if not self._is_made(block):
            raise VultrError(400, "Block storage is not active")
        if rental.region != block.region:
            raise VultrError(400, "Block storage is not in the same location as the server")
        block.item_record["attached_to"] = rental.id
        await self._moved(rental, live)
        return Response(status_code=204)

    async def detach(self, request: Request) -> Response:
        """Answer a volume without an instance; without ``live`` the instance is started again."""
        block, body = self._block(request), await read_json(request)
        fields.only(body, {"live", "instance_id"})  # some clients name the instance here, too
        live = _flag(body, "live")
        rental = self._instance(block)
        if rental is None:
            raise VultrError(400, "Block storage is not attached to a server")
        block.item_record["attached_to"] = ""
        await self._moved(rental, live)
        return Response(status_code=204)

    async def _moved(self, rental: Rental, live: bool) -> None:
        if not live and rental.phase is Phase.RUNNING:
            await self._cloud.start(rental, "reboot")
        self._cloud.save()

    def _block(self, request: Request) -> Holding:
        return self._holding(request, "volume", "block storage")

    def _instance(self, block: Holding) -> Rental | None:
        """Return the instance that has a volume; one that was destroyed has it no longer."""
        return self._cloud.world.find("vultr", block.item_record["attached_to"])

    def block_row(self, block: Holding) -> Json:
        """Return a volume as Vultr shows it."""
        rental = self._instance(block)
        cost = block.size_gb * _TIERS[block.item_record["block_type"]][0]
        now = self._cloud.clock()
        return {
            "id": block.id,
            "cost": round(cost, 2),
            "pending_charges": round(sum(amount(line, now) for line in block.lines), 2),
            "status": "active" if self._is_made(block) else "pending",
            "size_gb": int(block.size_gb),
            "region": block.region,
            "attached_to_instance": rental.id if rental else "",
            "attached_to_instance_ip": rental.address if rental else "",
            "attached_to_instance_label": rental.label if rental else "",
            "date_created": date(block.created_at),
            "label": block.label,
            "mount_id": block.item_record["mount_id"],
            "block_type": block.item_record["block_type"],
            "os_id": 0,
            "snapshot_id": "",
            "bootable": False,
            "emulated": True,
        }

    # -- snapshots -----------------------------------------------------------------------------------------------------

    async def snapshots(self, request: Request) -> Response:
        """Answer one page of the snapshots, by their description where asked."""
        rows = [self.snapshot_row(snapshot) for snapshot in self._cloud.world.held("vultr", "snapshot")]
        if "description" in request.query_params:
            rows = [row for row in rows if row["description"] == request.query_params["description"]]
        return page(request, "snapshots", rows, filters=("description",))

    async def create_snapshot(self, request: Request) -> Response:
        """Answer a new snapshot of an instance, which is pending at first."""
        body = await read_json(request)
        fields.only(body, {"instance_id", "description"})
        description = fields.text(body, "description", _TEXT_MAX)
        rental = self._cloud.world.find("vultr", fields.text(body, "instance_id", _TEXT_MAX))
        if rental is None:
            raise VultrError(400, "Invalid instance ID.")
        plan = rental.item_record
        record = {"os_id": rental.request.get("os_id") or 0, "instance_id": rental.id}
        snapshot = self._new("snapshot", description, "", float(plan["disk"]), record)
        price = snapshot.size_gb * _SNAPSHOT_USD_PER_GB_MONTH
        return self._begin(snapshot, price, {"snapshot": self.snapshot_row(snapshot)}, 201)

    async def show_snapshot(self, request: Request) -> Response:
        """Answer one snapshot; 404 where it was deleted."""
        return JSONResponse({"snapshot": self.snapshot_row(self._snapshot(request))})

    async def change_snapshot(self, request: Request) -> Response:
        """Answer another description."""
        return await self._describe(request, self._snapshot(request))

    async def _describe(self, request: Request, holding: Holding) -> Response:
        body = await read_json(request)
        fields.only(body, {"description"})
        holding.label = fields.text(body, "description", _TEXT_MAX)
        self._cloud.save()
        return Response(status_code=204)

    async def delete_snapshot(self, request: Request) -> Response:
        """Answer the end of a snapshot."""
        await self._cloud.release(self._snapshot(request))
        return Response(status_code=204)

    def _snapshot(self, request: Request) -> Holding:
        return self._holding(request, "snapshot", "snapshot")

    def snapshot_row(self, snapshot: Holding) -> Json:
        """Return a snapshot as Vultr shows it; its sizes, in bytes, are known when it is complete."""
        complete = self._is_made(snapshot)
        size = int(snapshot.size_gb * _GIB) if complete else 0
        return {
            "id": snapshot.id,
            "date_created": date(snapshot.created_at),
            "description": snapshot.label,
            "size": size,
            "compressed_size": size // 2,
            "status": "complete" if complete else "pending",
            "os_id": snapshot.item_record["os_id"],
            "app_id": 0,
            "emulated": True,
        }

    # -- firewall groups -----------------------------------------------------------------------------------------------

    async def groups(self, request: Request) -> Response:
        """Answer one page of the firewall groups."""
        rows = [self.group_row(group) for group in self._cloud.world.held("vultr", "firewall")]
        return page(request, "firewall_groups", rows)

    async def create_group(self, request: Request) -> Response:
        """Answer a new firewall group without rules, which lets nothing in."""
        body = await read_json(request)
        fields.only(body, {"description"})
        record = {"rules": [], "counter": 0, "changed_at": self._cloud.clock()}
        group = self._new("firewall", fields.text(body, "description", _TEXT_MAX), "", 0.0, record)
        self._cloud.hold(group)
        return JSONResponse({"firewall_group": self.group_row(group)}, 201)

    async def show_group(self, request: Request) -> Response:
        """Answer one firewall group; 404 where it was deleted."""
        return JSONResponse({"firewall_group": self.group_row(self._group(request))})

    async def change_group(self, request: Request) -> Response:
        """Answer another description."""
        group = self._group(request)
        group.item_record["changed_at"] = self._cloud.clock()
        return await self._describe(request, group)

    async def delete_group(self, request: Request) -> Response:
        """Answer the end of a firewall group with its rules."""
        await self._cloud.release(self._group(request))
        return Response(status_code=204)

    def _group(self, request: Request) -> Holding:
        return self._holding(request, "firewall", "firewall group")

    def group_row(self, group: Holding) -> Json:
        """Return a firewall group as Vultr shows it."""
        return {
            "id": group.id,
            "description": group.label,
            "date_created": date(group.created_at),
            "date_modified": date(group.item_record["changed_at"]),
            "instance_count": 0,
            "rule_count": len(group.item_record["rules"]),
            "max_rule_count": _MOST_RULES,
            "emulated": True,
        }

    async def rules(self, request: Request) -> Response:
        """Answer one page of a group's rules."""
        return page(request, "firewall_rules", self._group(request).item_record["rules"])

    async def add_rule(self, request: Request) -> Response:
        """Answer a new rule, which is not there yet."""
        group, body = self._group(request), await read_json(request)
        wanted = _rule(body)
        rules: list[Json] = group.item_record["rules"]
        if any(all(rule[name] == value for name, value in wanted.items() if name != "notes") for rule in rules):
            raise VultrError(400, "This rule is already defined")
        if len(rules) >= _MOST_RULES:
            raise VultrError(400, "The maximum number of rules has been reached")
        group.item_record["counter"] += 1
        group.item_record["changed_at"] = self._cloud.clock()
        rule = {"id": group.item_record["counter"], "type": wanted["ip_type"], "action": "accept", **wanted}
        rules.append(rule)
        self._cloud.save()
        return JSONResponse({"firewall_rule": rule}, 201)

    async def show_rule(self, request: Request) -> Response:
        """Answer one rule."""
        return JSONResponse({"firewall_rule": self._rule(request)})

    async def delete_rule(self, request: Request) -> Response:
        """Answer a removed rule."""
        rule, group = self._rule(request), self._group(request)
        group.item_record["rules"].remove(rule)
        group.item_record["changed_at"] = self._cloud.clock()
        self._cloud.save()
        return Response(status_code=204)

    def _rule(self, request: Request) -> Json:
        rules: list[Json] = self._group(request).item_record["rules"]
        for rule in rules:
            if str(rule["id"]) == request.path_params["rule"]:
                return rule
        raise VultrError(404, "Invalid firewall rule ID.")


def _charge(holding: Holding, usd_per_month: float, now: float) -> None:
    holding.open_line(holding.kind, usd_per_month / HOURS_PER_MONTH, now, usd_per_month)


def _size(body: Json, tier: str) -> int:
    _, least, most = _TIERS[tier]
    size = fields.number(body, "size_gb", least, most)
    if size is None or size != int(size):
        raise BadField(f"size_gb is not a whole number between {least} and {most}.")
    return int(size)


def _flag(body: Json, name: str) -> bool:
    value = body.get(name)
    if value not in (None, True, False):
        raise BadField(f"{name} is neither true nor false.")
    return bool(value)


def _rule(body: Json) -> Json:
    """Return a rule's own fields, checked."""
    fields.only(body, {"ip_type", "protocol", "subnet", "subnet_size", "port", "source", "notes"})
    ip_type, protocol = (fields.text(body, name, _TEXT_MAX).lower() for name in ("ip_type", "protocol"))
    if ip_type not in ("v4", "v6"):
        raise BadField("ip_type is neither v4 nor v6.")
    if protocol not in _PROTOCOLS:
        raise BadField(f"protocol is none of {', '.join(_PROTOCOLS)}.")
    source = fields.text(body, "source", _TEXT_MAX)
    if source not in ("", "cloudflare"):
        raise BadField("The sandbox does not carry out a load balancer as source: leave it out.")
    subnet, size = fields.text(body, "subnet", _TEXT_MAX), fields.number(body, "subnet_size", 0, 128)
    if not source:
        _check_network(ip_type, f"{subnet}/{-1 if size is None else int(size)}")
    port = fields.text(body, "port", _TEXT_MAX)
    if protocol in _WITH_PORTS and not _ports(port):
        raise BadField("port is neither a port nor a range of ports, such as 8000:9000.")
    if protocol not in _WITH_PORTS and port:
        raise BadField(f"port cannot be given for {protocol}.")
    return {
        "ip_type": ip_type,
        "protocol": protocol,
        "port": port,
        "subnet": subnet,
        "subnet_size": int(size or 0),
        "source": source,
        "notes": fields.text(body, "notes", _TEXT_MAX),
    }


def _check_network(ip_type: str, network: str) -> None:
    try:
        version = ipaddress.ip_network(network, strict=False).version
    except ValueError:
        raise BadField("subnet and subnet_size are no network.") from None
    if f"v{version}" != ip_type:
        raise BadField(f"subnet is not of the type {ip_type}.")


def _ports(port: str) -> bool:
    first, colon, last = port.partition(":")
    numbers = [first, last] if colon else [first]
    if not all(number.isascii() and number.isdigit() and len(number) <= 5 for number in numbers):
        return False
    return 0 < int(numbers[0]) <= int(numbers[-1]) <= _HIGHEST_PORT
