//! The little JSON that the result files need: one flat object a line, with strings and whole numbers.

use std::collections::BTreeMap;

/// `text` as a JSON string, with its quotes.
pub fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c < ' ' => quoted.push_str(&format!("\\u{:04x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Reads the leading `"key":"string"` and `"key":123` members of a line that [`quote`] and plain numbers wrote. Stops
/// quietly at the first member of another type; `None` when the line is not a whole object, such as a torn last line.
pub fn members(line: &str) -> Option<BTreeMap<String, String>> {
    let mut rest = line.strip_prefix('{')?.strip_suffix('}')?;
    let mut found = BTreeMap::new();
    while !rest.is_empty() {
        let (key, after) = string(rest)?;
        let value_text = after.strip_prefix(':')?;
        let (value, after) = if value_text.starts_with('"') {
            string(value_text)?
        } else {
            let end = value_text.find(|c: char| !c.is_ascii_digit()).unwrap_or(value_text.len());
            (value_text[..end].to_string(), &value_text[end..])
        };
        if value.is_empty() && !value_text.starts_with('"') {
            break;
        }
        found.insert(key, value);
        rest = match after.strip_prefix(',') {
            Some(more) => more,
            None if after.is_empty() => after,
            None => return None,
        };
    }
    Some(found)
}

/// Reads one quoted string; returns it and what follows.
fn string(text: &str) -> Option<(String, &str)> {
    let body = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &body[at + 1..])),
            '\\' => match chars.next()?.1 {
                'u' => {
                    let digits = body.get(at + 2..at + 6)?;
                    value.push(char::from_u32(u32::from_str_radix(digits, 16).ok()?)?);
                    chars.nth(3)?;
                }
                other => value.push(other),
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let id = "a \"b\" \\ \u{1} é";
        let line = format!("{{\"id\":{},\"nodes\":12,\"steps\":[{{\"y\":1}}]}}", quote(id));
        let read = members(&line).unwrap();
        assert_eq!(read["id"], id);
        assert_eq!(read["nodes"], "12");
        assert!(!read.contains_key("steps"));
    }

    #[test]
    fn a_torn_line_is_not_an_object() {
        let line = "{\"id\":\"r1\",\"nodes\":12}";
        for end in 0..line.len() {
            assert_eq!(members(&line[..end]), None, "{}", &line[..end]);
        }
    }
}
