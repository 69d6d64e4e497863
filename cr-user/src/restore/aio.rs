//! Linux AIO contexts. The kernel makes their rings, and its own place in a ring cannot be set: a new context begins at
//! place 0, and is brought to where the old one was by operations that do nothing.

use std::cmp::Ordering;

use crate::error::{Error, Result};
use crate::object::memory::Mapping;
use crate::object::memory::aio::{AioRing, HEADER, rings};
use crate::remote::Call;
use crate::restore::body::Body;
use crate::sys::vm;

/// Makes the contexts. Where their rings will be is reserved already; `file`: a descriptor of any file that can be read.
///
/// # Errors
/// When the kernel refuses, or makes other rings than it did.
pub fn restore(body: &mut Body, mappings: &[Mapping], file: i32) -> Result<()> {
    let (mut made, mut between) = (Vec::new(), Vec::new());
    for (mapping, ring) in rings(mappings) {
        // The kernel gives the lowest place that is free.
        loop {
            let (context, id) = set_up(body, ring.places)?;
            match id.cmp(&ring.id) {
                Ordering::Less => between.push(context),
                Ordering::Equal => {
                    made.push((mapping, ring, context));
                    break;
                }
                Ordering::Greater => return Err(differs("the places of contexts")),
            }
        }
    }
    let destroy = between.into_iter().map(|context| Call::new(libc::SYS_io_destroy, &[context])).collect();
    body.run(0, destroy, "making AIO contexts")?;
    for (mapping, ring, context) in made {
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        let to_its_place = Call::new(libc::SYS_mremap, &[context, mapping.len(), mapping.len(), flags, mapping.start]);
        body.run(0, vec![to_its_place], "moving an AIO ring to its place")?;
        let waiting = (ring.tail + ring.places - ring.head) % ring.places;
        turn(body, mapping.start, ring, file, ring.head, true)?;
        turn(body, mapping.start, ring, file, waiting, false)?;
        let mut header = [0; HEADER as usize];
        get(body, mapping.start, &mut header)?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        if (word(8), word(12)) != (ring.head, ring.tail) {
            return Err(differs("the place in a ring"));
        }
        vm::write(body.pid(), mapping.start, &ring.bytes).map_err(|e| Error::system("filling an AIO ring", e))?;
    }
    Ok(())
}

/// A new context with a ring of so many places: its address and its place among the contexts.
fn set_up(body: &mut Body, places: u32) -> Result<(u64, u32)> {
    body.put(&[0; 8])?;
    let call = Call::new(libc::SYS_io_setup, &[u64::from((places - 2) / 2), body.data()]);
    body.run(0, vec![call], "making an AIO context")?;
    let (mut context, mut header) = ([0; 8], [0; HEADER as usize]);
    get(body, body.data(), &mut context)?;
    let context = u64::from_le_bytes(context);
    get(body, context, &mut header)?;
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    // It grows with the number of CPUs.
    if word(4) == places { Ok((context, word(0))) } else { Err(differs("the size of rings")) }
}

/// Has `count` operations complete that do nothing, and fetches them, or not.
fn turn(body: &mut Body, context: u64, ring: &AioRing, file: i32, count: u32, fetch: bool) -> Result<()> {
    /// Room for addresses and events is little.
    const MOST: u32 = 512;
    const POINTERS: u64 = 64;
    const EVENTS: u64 = POINTERS + 8 * MOST as u64;
    let data = body.data();
    // `struct iocb`: a read of nothing (IOCB_CMD_PREAD), with the file in the second word of its third pair.
    let mut bytes = [0; POINTERS as usize];
    bytes[20..24].copy_from_slice(&file.to_le_bytes());
    let mut bytes = bytes.to_vec();
    bytes.extend((0..MOST).flat_map(|_| data.to_le_bytes()));
    body.put(&bytes)?;
    let mut left = count;
    while left > 0 {
        let now = u64::from(left.min(MOST).min((ring.places / 2).max(1)));
        let mut calls = vec![Call::new(libc::SYS_io_submit, &[context, now, data + POINTERS])];
        if fetch {
            calls.push(Call::new(libc::SYS_io_getevents, &[context, now, now, data + EVENTS, 0]));
        }
        if body.run(0, calls, "bringing an AIO ring to its place")?.iter().any(|done| *done != now) {
            return Err(differs("how operations complete"));
        }
        left -= now as u32;
    }
    Ok(())
}

fn differs(what: &str) -> Error {
    Error::NotHere {
        what: "the job's Linux AIO contexts".to_owned(),
        why: format!("{what} cannot be made as they were (rings grow with the number of CPUs)"),
        todo: "restore it on a machine with as many CPUs and the same kernel".to_owned(),
    }
}

fn get(body: &Body, at: u64, bytes: &mut [u8]) -> Result<()> {
    let range = vm::Range { start: at, len: bytes.len() as u64 };
    match vm::read(body.pid(), &[range], bytes) {
        Ok(n) if n == bytes.len() => Ok(()),
        Ok(_) => Err(Error::system("reading an AIO ring", nix::errno::Errno::EFAULT)),
        Err(e) => Err(Error::system("reading an AIO ring", e)),
    }
}
