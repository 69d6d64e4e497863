//! Offsets of kernel structures' fields, from the BTF that the running kernel carries.
//!
//! aya parses BTF but keeps the members of structures to itself. The crate `btf` 0.5 shows them, but looks types up by
//! name over all kinds at once (a function called like a structure hides it) and copies every structure for each place
//! that mentions it. What is needed here is small: one pass over the types, then members by name.
//!
//! Format: <https://docs.kernel.org/bpf/btf.html>.

use std::{collections::HashMap, fs, io};

/// Where the kernel shows its own type information.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
const TYPE: usize = 12;
const MEMBER: usize = 12;
/// Anonymous structures and chains of typedefs nest less deep than this; damaged data could loop.
const DEEPEST: u32 = 32;

/// Why a field's place is not known.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file cannot be read.
    #[error(
        "cannot read the kernel's type information {path}: {source}; the kernel must be built with CONFIG_DEBUG_INFO_BTF"
    )]
    Read {
        /// Which file.
        path: String,
        /// The reason.
        source: io::Error,
    },
    /// The file is not what the format says.
    #[error("the kernel's type information is damaged: {what} at byte {at}")]
    Damaged {
        /// What is wrong.
        what: &'static str,
        /// Where in the file.
        at: usize,
    },
    /// The kernel has no such structure.
    #[error("this kernel has no struct {0}")]
    NoStructure(String),
    /// The structure has no such member.
    #[error("this kernel's struct {structure} has no field {path}")]
    NoField {
        /// The structure's name.
        structure: String,
        /// The members' names, joined by dots.
        path: String,
    },
}

/// A kernel's type information.
#[derive(Debug)]
pub struct Btf {
    data: Vec<u8>,
    strings: usize,
    /// Where each type begins in `data`; type 0 is `void` and has no place.
    types: Vec<usize>,
    /// Named structures and unions.
    structures: HashMap<Vec<u8>, u32>,
}

impl Btf {
    /// Reads the running kernel's.
    pub fn of_kernel() -> Result<Self, BtfError> {
        let data = fs::read(VMLINUX).map_err(|source| BtfError::Read { path: VMLINUX.into(), source })?;
        Self::parse(data)
    }

    /// Reads little-endian BTF.
    pub fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        if data.len() < HEADER || data[..2] != MAGIC.to_le_bytes() {
            return Err(BtfError::Damaged { what: "no BTF header", at: 0 });
        }
        let mut btf = Self { data, strings: 0, types: vec![0], structures: HashMap::new() };
        let header = btf.word(4)?;
        let (types, types_len) = (header + btf.word(8)?, btf.word(12)?);
        btf.strings = header + btf.word(16)?;
        let end = types + types_len;
        let mut at = types;
        while at < end {
            let info = btf.word(at + 4)?;
            let (kind, members) = (info >> 24 & 0x1f, info & 0xffff);
            if matches!(kind, kind::STRUCT | kind::UNION) {
                let name = btf.string(btf.word(at)?)?.to_vec();
                let id = btf.types.len() as u32;
                if !name.is_empty() {
                    btf.structures.entry(name).or_insert(id);
                }
            }
            btf.types.push(at);
            at += TYPE + extra_bytes(kind, members).ok_or(BtfError::Damaged { what: "an unknown kind of type", at })?;
        }
        Ok(btf)
    }

    /// The size of a structure in bytes.
    pub fn size(&self, structure: &str) -> Result<u32, BtfError> {
        Ok(self.word(self.structure(structure)? + 8)? as u32)
    }

    /// The offset in bytes of a field from the structure's start. `path` names members of members with dots between; members
    /// of anonymous structures and unions count as the outer one's, as in C.
    pub fn offset(&self, structure: &str, path: &str) -> Result<u32, BtfError> {
        let no_field = || BtfError::NoField { structure: structure.into(), path: path.into() };
        let mut at = Some(self.structure(structure)?);
        let mut bits = 0;
        for name in path.split('.') {
            let holder = at.ok_or_else(no_field)?;
            let (offset, kind) = self.member(holder, name.as_bytes(), DEEPEST)?.ok_or_else(no_field)?;
            bits = offset.saturating_add(bits);
            at = self.resolve(kind)?;
        }
        // A bit field has no byte of its own.
        if bits % 8 == 0 { Ok(bits / 8) } else { Err(no_field()) }
    }

    fn structure(&self, name: &str) -> Result<usize, BtfError> {
        let id = self.structures.get(name.as_bytes()).ok_or_else(|| BtfError::NoStructure(name.into()))?;
        Ok(self.types[*id as usize])
    }

    /// The offset in bits and the type of a member of the structure at `at`.
    fn member(&self, at: usize, wanted: &[u8], depth: u32) -> Result<Option<(u32, u32)>, BtfError> {
        let info = self.word(at + 4)?;
        if !matches!(info >> 24 & 0x1f, kind::STRUCT | kind::UNION) || depth == 0 {
            return Ok(None);
        }
        // With this flag a member's offset shares its word with the width of a bit field.
        let mask = if info >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
        for index in 0..info & 0xffff {
            let member = at + TYPE + index * MEMBER;
            let (name, kind) = (self.string(self.word(member)?)?, self.word(member + 4)? as u32);
            let offset = self.word(member + 8)? as u32 & mask;
            if name == wanted {
                return Ok(Some((offset, kind)));
            }
            if name.is_empty()
                && let Some(inner) = self.resolve(kind)?
                && let Some((inner_offset, kind)) = self.member(inner, wanted, depth - 1)?
            {
                return Ok(Some((offset.saturating_add(inner_offset), kind)));
            }
        }
        Ok(None)
    }

    /// Where the type begins that `id` means once typedefs and qualifiers are taken off; nothing for `void`.
    fn resolve(&self, mut id: u32) -> Result<Option<usize>, BtfError> {
        for _ in 0..DEEPEST {
            if id == 0 {
                return Ok(None);
            }
            let at =
                *self.types.get(id as usize).ok_or(BtfError::Damaged { what: "an unknown type's number", at: 0 })?;
            match self.word(at + 4)? >> 24 & 0x1f {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = self.word(at + 8)? as u32;
                }
                _ => return Ok(Some(at)),
            }
        }
        Err(BtfError::Damaged { what: "a loop of types", at: 0 })
    }

    fn word(&self, at: usize) -> Result<usize, BtfError> {
        let bytes = self.data.get(at..at + 4).ok_or(BtfError::Damaged { what: "the end of the data", at })?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    }

    fn string(&self, offset: usize) -> Result<&[u8], BtfError> {
        let at = self.strings + offset;
        let rest = self.data.get(at..).ok_or(BtfError::Damaged { what: "a name outside the names", at })?;
        let end = rest.iter().position(|byte| *byte == 0);
        Ok(&rest[..end.ok_or(BtfError::Damaged { what: "a name without an end", at })?])
    }
}

/// The kinds of types, `BTF_KIND_*` in `linux/btf.h`, as far as they differ here.
mod kind {
    pub(super) const STRUCT: usize = 4;
    pub(super) const UNION: usize = 5;
    pub(super) const TYPEDEF: usize = 8;
    pub(super) const VOLATILE: usize = 9;
    pub(super) const CONST: usize = 10;
    pub(super) const RESTRICT: usize = 11;
    pub(super) const TYPE_TAG: usize = 18;
}

/// How many bytes follow a type's own twelve.
fn extra_bytes(kind: usize, members: usize) -> Option<usize> {
    Some(match kind {
        // Pointers, forward declarations, typedefs, qualifiers, functions, floats, type tags.
        2 | 7..=12 | 16 | 18 => 0,
        // Integers, variables, declaration tags.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        // Structures, unions, data sections, 64-bit enumerations.
        4 | 5 | 15 | 19 => 12 * members,
        // Enumerations, function prototypes.
        6 | 13 => 8 * members,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { int a; union { struct { int b; } in; struct { int c; }; }; int d : 3; }`, with `a` at 0, the union
    /// at 4 and `d` in bits 64 to 66.
    fn example() -> Vec<u8> {
        let strings = b"\0int\0outer\0a\0b\0c\0d\0in\0";
        let name = |name: &str| {
            let wanted = [b"\0", name.as_bytes(), b"\0"].concat();
            strings.windows(wanted.len()).position(|window| window == wanted).unwrap() as u32 + 1
        };
        let info = |kind: u32, members: u32, flag: u32| flag << 31 | kind << 24 | members;
        let types: Vec<u32> = [
            vec![name("int"), info(1, 0, 0), 4, 32],
            vec![0, info(4, 1, 0), 4, name("b"), 1, 0],
            vec![0, info(4, 1, 0), 4, name("c"), 1, 0],
            vec![0, info(5, 2, 0), 4, name("in"), 2, 0, 0, 3, 0],
            vec![name("outer"), info(4, 3, 1), 12, name("a"), 1, 0, 0, 4, 32, name("d"), 1, (3 << 24) + 65],
        ]
        .concat();
        let length = types.len() as u32 * 4;
        let header = [24, 0, length, length, strings.len() as u32];
        let mut data = vec![0x9f, 0xeb, 1, 0];
        data.extend(header.iter().chain(&types).flat_map(|word| word.to_le_bytes()));
        data.extend(strings);
        data
    }

    #[test]
    fn finds_members_of_members_and_of_anonymous_ones() {
        let btf = Btf::parse(example()).unwrap();
        assert_eq!(btf.size("outer").unwrap(), 12);
        assert_eq!(btf.offset("outer", "a").unwrap(), 0);
        assert_eq!(btf.offset("outer", "in.b").unwrap(), 4);
        assert_eq!(btf.offset("outer", "c").unwrap(), 4);
        assert!(matches!(btf.offset("outer", "b"), Err(BtfError::NoField { .. })));
        assert!(matches!(btf.offset("outer", "d"), Err(BtfError::NoField { .. })), "a bit field has no byte offset");
        assert!(matches!(btf.size("other"), Err(BtfError::NoStructure(_))));
    }

    #[test]
    fn damaged_data_is_an_error_and_never_a_panic() {
        let good = example();
        for length in 0..good.len() {
            let _ = Btf::parse(good[..length].to_vec()).map(|btf| btf.offset("outer", "in.b"));
        }
        for byte in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[byte] ^= 1 << bit;
                let _ = Btf::parse(bad).map(|btf| btf.offset("outer", "in.b"));
            }
        }
    }

    #[test]
    fn reads_the_running_kernel_or_says_why_not() {
        match Btf::of_kernel() {
            Ok(btf) => assert!(btf.offset("task_struct", "mm").is_ok()),
            Err(BtfError::Read { .. }) => println!("skipped: this kernel shows no BTF"),
            Err(error) => panic!("{error}"),
        }
    }
}
