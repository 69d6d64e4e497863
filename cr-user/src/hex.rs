//! Bytes as lower-case hex digits, as they stand in markers, manifests and key files.

/// The digits of `bytes`.
pub fn encode(bytes: &[u8]) -> String {
    // Room for all at once: of a secret no copy shall be left where it had to grow.
    let mut text = String::with_capacity(2 * bytes.len());
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.for_each(|digit| text.push(char::from(b"0123456789abcdef"[usize::from(digit)])));
    text
}

/// The bytes of exactly `N` pairs of lower-case digits.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let mut bytes = [0; N];
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let bytes = [0, 1, 0x7f, 0x80, 0xff];
        assert_eq!(encode(&bytes), "00017f80ff");
        assert_eq!(decode("00017f80ff"), Some(bytes));
        for bad in ["00017f80f", "00017f80ff00", "00017F80FF", "0001 f80ff", ""] {
            assert_eq!(decode::<5>(bad), None, "{bad}");
        }
    }
}
