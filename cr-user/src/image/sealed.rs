//! What a sealed or signed image has besides: encrypted metadata, and the proof of who wrote it.
//!
//! Records, checksums, tables and index of a sealed image are encrypted in units of 1 MiB, each followed by its tag. A reader decrypts
//! them into memory of its own, and uses that in place of the file.

use std::io;

use memmap2::{Advice, Mmap, MmapMut};

use super::layout::{FOOTER_BYTES, Footer, HEADER_BYTES, Header, UNIT_BYTES};
use crate::seal::{ImageKey, PublicKey, SIGNATURE_BYTES, Signer, TAG_BYTES, Unit};

/// Turns metadata into what stands in the file, as it comes.
#[derive(Debug)]
pub(super) struct Units<'k> {
    key: Option<&'k ImageKey>,
    /// What there is of the next unit.
    bytes: Vec<u8>,
    number: u64,
}

impl<'k> Units<'k> {
    /// Without a key, it stays as it is.
    pub(super) fn new(key: Option<&'k ImageKey>) -> Self {
        Self { key, bytes: Vec::new(), number: 0 }
    }

    /// Takes in more, and hands on what is complete.
    pub(super) fn take<E>(&mut self, mut bytes: &[u8], mut put: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        if self.key.is_none() {
            return put(bytes);
        }
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(UNIT_BYTES as usize - self.bytes.len()));
            self.bytes.extend_from_slice(now);
            bytes = later;
            if self.bytes.len() == UNIT_BYTES as usize {
                self.end(&mut put)?;
            }
        }
        Ok(())
    }

    /// Hands on the last unit.
    pub(super) fn end<E>(&mut self, mut put: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let Some(key) = self.key.filter(|_| !self.bytes.is_empty()) else { return Ok(()) };
        key.seal(Unit::Metadata(self.number), &mut self.bytes);
        self.number += 1;
        let put = put(&self.bytes);
        self.bytes.clear();
        put
    }
}

/// The metadata of a sealed image whose header and footer were checked; none if a unit is not as it was written.
pub(super) fn decrypt(file: &[u8], footer: &Footer, key: &ImageKey) -> io::Result<Option<Mmap>> {
    let mut plain = MmapMut::map_anon((footer.metadata_end() - footer.records_offset) as usize)?;
    // It is the job's, as its memory is.
    plain.advise(Advice::DontDump)?;
    let mut at = footer.records_offset as usize;
    let mut unit = Vec::with_capacity(UNIT_BYTES as usize + TAG_BYTES);
    for (number, part) in plain.chunks_mut(UNIT_BYTES as usize).enumerate() {
        let end = at + part.len() + TAG_BYTES;
        unit.clear();
        unit.extend_from_slice(&file[at..end]);
        let Some(opened) = key.open(Unit::Metadata(number as u64), &mut unit) else { return Ok(None) };
        part.copy_from_slice(opened);
        at = end;
    }
    plain.make_read_only().map(Some)
}

/// Makes the footer of a sealed image prove that somebody with the store's key wrote it.
pub(super) fn authenticate(header: &Header, footer: &mut Footer, key: Option<&ImageKey>) {
    if let Some(key) = key {
        footer.mac = *key.authenticate(&header.encode(), Footer::authenticated(&footer.encode())).as_bytes();
    }
}

/// Whether somebody with the store's key wrote header and footer. Where there is none, they must not claim it.
pub(super) fn is_authentic(header: &Header, footer: &Footer, key: Option<&ImageKey>) -> bool {
    match key {
        // Compared in constant time.
        Some(key) => key.authenticate(&header.encode(), Footer::authenticated(&footer.encode())) == footer.mac,
        None => footer.mac == [0; 32],
    }
}

/// The signature of an image that is complete but for it.
pub(super) fn sign(header: &Header, footer: &Footer, signer: &Signer) -> [u8; SIGNATURE_BYTES] {
    signer.sign(&Footer::signed_message(&header.encode(), &footer.encode()))
}

/// Who signed an image, all of which was checked against its hash; none if the signature is not valid.
pub(super) fn signer(file: &[u8], footer: &Footer) -> Option<PublicKey> {
    let (rest, end) = file.split_last_chunk::<{ FOOTER_BYTES as usize }>()?;
    let (_, signature) = rest.split_last_chunk::<SIGNATURE_BYTES>()?;
    debug_assert_eq!(footer.encode(), *end);
    PublicKey::of_signature(signature, &Footer::signed_message(&file[..HEADER_BYTES as usize], end))
}
