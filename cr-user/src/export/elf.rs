//! The frame of an ELF core file: header, program headers, and where everything lies (elf(5)).

use super::segments::{Content, Segment};
use crate::sys::PAGE;

const EHDR: usize = 64;
const PHDR: u64 = 56;
const SHDR: usize = 64;
const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// From so many program headers on, their number is in the first section header.
const PN_XNUM: usize = 0xffff;

/// Where everything lies: header, program headers, a section header if need be, notes, and then the memory, aligned to pages.
#[derive(Debug)]
pub(super) struct Layout {
    segments: Vec<Segment>,
    notes: u64,
}

impl Layout {
    pub(super) fn of(segments: Vec<Segment>, notes: u64) -> Self {
        Self { segments, notes }
    }

    fn has_section(&self) -> bool {
        self.segments.len() + 1 >= PN_XNUM
    }

    fn section_at(&self) -> u64 {
        EHDR as u64 + PHDR * (self.segments.len() as u64 + 1)
    }

    /// Where the notes are.
    pub(super) fn notes_at(&self) -> u64 {
        self.section_at() + if self.has_section() { SHDR as u64 } else { 0 }
    }

    fn memory_at(&self) -> u64 {
        (self.notes_at() + self.notes).next_multiple_of(PAGE)
    }

    /// Each segment, and where its content is or would be.
    fn placed(&self) -> impl Iterator<Item = (&Segment, u64)> {
        self.segments.iter().scan(self.memory_at(), |next, segment| {
            let at = *next;
            *next += bytes_of(segment);
            Some((segment, at))
        })
    }

    /// The segments whose content is in the file, and where.
    pub(super) fn with_content(&self) -> impl Iterator<Item = (&Segment, u64)> {
        self.placed().filter(|(segment, _)| segment.content != Content::None)
    }

    /// Bytes of the file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.memory_at() + self.segments.iter().map(bytes_of).sum::<u64>()
    }

    /// All headers, with where they belong. They are built one by one: there may be many.
    pub(super) fn headers(&self) -> impl Iterator<Item = (u64, Vec<u8>)> {
        let note = program_header(PT_NOTE, 0, self.notes_at(), (0, 0), self.notes, 4);
        let loads = self.placed().map(|(segment, at)| {
            let bits = [(libc::PROT_EXEC, 1), (libc::PROT_WRITE, 2), (libc::PROT_READ, 4)];
            let flags = bits.iter().map(|(prot, flag)| if segment.prot & prot == 0 { 0 } else { *flag }).sum();
            program_header(PT_LOAD, flags, at, (segment.start, segment.len()), bytes_of(segment), PAGE)
        });
        let headers = (0..).map(|n| EHDR as u64 + n * PHDR).zip(std::iter::once(note).chain(loads));
        let section = self.has_section().then(|| (self.section_at(), self.section()));
        std::iter::once((0, self.header())).chain(headers).chain(section)
    }

    fn header(&self) -> Vec<u8> {
        let count = self.segments.len() + 1;
        let (sections, section_at) = if self.has_section() { (1, self.section_at()) } else { (0, 0) };
        let mut out = b"\x7fELF\x02\x01\x01".to_vec();
        out.resize(16, 0);
        out.extend(ET_CORE.to_le_bytes());
        out.extend(EM_X86_64.to_le_bytes());
        out.extend(1u32.to_le_bytes());
        out.extend([0; 8]);
        out.extend((EHDR as u64).to_le_bytes());
        out.extend(section_at.to_le_bytes());
        out.extend([0; 4]);
        let sizes = [EHDR as u16, PHDR as u16, count.min(PN_XNUM) as u16, SHDR as u16, sections, 0];
        out.extend(sizes.into_iter().flat_map(u16::to_le_bytes));
        out
    }

    /// The one section header: its `sh_info` is the number of program headers.
    fn section(&self) -> Vec<u8> {
        let mut out = vec![0; SHDR];
        out[32..40].copy_from_slice(&1u64.to_le_bytes());
        out[44..48].copy_from_slice(&(self.segments.len() as u32 + 1).to_le_bytes());
        out
    }
}

/// Bytes of a segment that are in the file.
fn bytes_of(segment: &Segment) -> u64 {
    if segment.content == Content::None { 0 } else { segment.len() }
}

fn program_header(kind: u32, flags: u32, at: u64, (address, len): (u64, u64), bytes: u64, align: u64) -> Vec<u8> {
    let mut out = [kind, flags].map(u32::to_le_bytes).concat();
    out.extend([at, address, 0, bytes, len, align].into_iter().flat_map(u64::to_le_bytes));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(count: u64) -> Vec<Segment> {
        let segment = |n: u64| Segment {
            start: n * 2 * PAGE,
            end: (n * 2 + 1) * PAGE,
            prot: libc::PROT_READ,
            shared: false,
            content: if n.is_multiple_of(2) { Content::Own } else { Content::None },
        };
        (0..count).map(segment).collect()
    }

    fn word(bytes: &[u8], at: usize, len: usize) -> u64 {
        let mut word = [0; 8];
        word[..len].copy_from_slice(&bytes[at..at + len]);
        u64::from_le_bytes(word)
    }

    fn written(layout: &Layout) -> Vec<u8> {
        let mut file = vec![0; layout.memory_at() as usize];
        for (at, bytes) in layout.headers() {
            file[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
        }
        file
    }

    #[test]
    fn everything_has_its_place() {
        let layout = Layout::of(segments(3), 100);
        let file = written(&layout);
        assert_eq!((word(&file, 32, 8), word(&file, 56, 2), word(&file, 60, 2)), (64, 4, 0));
        assert_eq!(layout.notes_at(), 64 + 4 * 56);
        assert_eq!((layout.memory_at(), layout.file_bytes()), (PAGE, 3 * PAGE), "two of three have content");
        let loads: Vec<u64> = layout.with_content().map(|(_, at)| at).collect();
        assert_eq!(loads, [PAGE, 2 * PAGE]);
        let second = 64 + 2 * 56;
        assert_eq!(
            (word(&file, second + 16, 8), word(&file, second + 32, 8), word(&file, second + 40, 8)),
            (2 * PAGE, 0, PAGE)
        );
    }

    #[test]
    fn more_program_headers_than_their_field_holds() {
        let layout = Layout::of(segments(0xfffe), 8);
        let file = written(&layout);
        let section = word(&file, 40, 8) as usize;
        assert_eq!((word(&file, 56, 2), word(&file, 60, 2), section as u64), (0xffff, 1, 64 + 56 * 0xffff));
        assert_eq!(word(&file, section + 44, 4), 0xffff);
        let layout = Layout::of(segments(0xfffd), 8);
        assert_eq!((word(&written(&layout), 56, 2), layout.has_section()), (0xfffe, false));
    }
}
