//! Bytes in JSON: as text where that says it all, else in hexadecimal.

use serde::{Serialize, Serializer};

use crate::hex;

/// Serialises bytes: a string if they are printable UTF-8 (zero bytes, tabs and line ends allowed), else `{"hex":"…"}`.
///
/// # Errors
/// Those of the serialiser.
pub fn bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    Bytes(bytes).serialize(serializer)
}

/// Serialises a list of such.
///
/// # Errors
/// Those of the serialiser.
pub fn lists<S: Serializer>(lists: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(lists.iter().map(|list| Bytes(list)))
}

struct Bytes<'b>(&'b [u8]);

#[derive(Serialize)]
struct Hex {
    hex: String,
}

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let plain = |c: char| !c.is_control() || matches!(c, '\0' | '\t' | '\n' | '\r');
        match std::str::from_utf8(self.0) {
            Ok(text) if text.chars().all(plain) && !(text.len() > 1 && text.chars().all(|c| c == '\0')) => {
                serializer.serialize_str(text)
            }
            _ => Hex { hex: hex::encode(self.0) }.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_text_and_the_rest_is_hexadecimal() {
        let shown = |bytes: &[u8]| serde_json::to_value(Bytes(bytes)).unwrap();
        assert_eq!(shown(b"sleep\x00100\x00"), "sleep\x00100\0");
        assert_eq!(shown("Zürich".as_bytes()), "Zürich");
        assert_eq!(shown(b""), "");
        for (bytes, hex) in [(&b"\xff\x00"[..], "ff00"), (b"\x01a", "0161"), (b"\0\0", "0000")] {
            assert_eq!(shown(bytes), serde_json::json!({ "hex": hex }));
        }
    }
}
