//! One image to one object. What is there already of an upload that was interrupted is not sent again.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::remote::Remote;
use super::{Error, Result};
use crate::compact::Pace;

/// Bytes of a part. S3 takes no less than 5 MiB, and no more than 10 000 parts.
const PART: u64 = 8 << 20;
/// Most parts of an upload.
const MOST_PARTS: u64 = 9000;
/// Parts that are on their way at the same time; each is in memory.
const AT_ONCE: usize = 2;
/// An image ends in a footer of so many bytes, which has hashes of all of it.
const FOOTER: u64 = 256;

/// An upload that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Under {
    /// The object that it will become.
    pub(super) object: String,
    /// Its name, given by the server.
    pub(super) upload: String,
    part_bytes: u64,
    /// What the server called the parts that it has.
    parts: Vec<Option<String>>,
}

/// What is uploaded.
pub(super) struct Source<'a> {
    pub(super) file: &'a File,
    pub(super) path: &'a Path,
    pub(super) bytes: u64,
    pub(super) object: &'a str,
}

impl Source<'_> {
    fn read(&self, start: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        self.file.read_exact_at(&mut bytes, start).map_err(|source| Error::io(self.path, "read", source))?;
        Ok(bytes)
    }

    /// Whether the object is there already: objects are whole or are not, and this one has the image's hash in its name.
    async fn is_there(&self, remote: &Remote) -> bool {
        let start = self.bytes - FOOTER;
        let there = remote.get_range(self.object, start..self.bytes).await;
        there.is_ok_and(|there| self.read(start, FOOTER).is_ok_and(|ours| ours == there.as_ref()))
    }
}

/// Uploads an image. `under_way` is what is known of an upload from before, and becomes what is known of this one: `save` is called
/// each time. It stays when all is there, until the caller has made use of that.
///
/// # Errors
/// When it did not succeed; trying again later may go on where this stopped.
pub(super) async fn upload(
    remote: &Remote,
    source: &Source<'_>,
    under_way: &mut Option<Under>,
    pace: &mut Pace,
    save: &mut dyn FnMut(Option<&Under>) -> Result<()>,
) -> Result<()> {
    let pace = RefCell::new(pace);
    // What is sent is sent in pieces of some size: a bandwidth holds on average.
    let wait = async |bytes: u64| {
        let pause = pace.borrow_mut().pause(bytes);
        sleep(pause).await;
    };
    if let Some(old) = under_way.take_if(|old| old.object != source.object) {
        log::info!("gave up the upload of {}", remote.url_of(&old.object));
        let _ = remote.abort(&old.object, &old.upload).await;
        save(under_way.as_ref())?;
    }
    if source.bytes <= PART {
        wait(source.bytes).await;
        return remote.put(source.object, source.read(0, source.bytes)?).await;
    }
    if !remote.resumes() {
        let mut start = 0;
        let next = async || {
            let len = PART.min(source.bytes - start);
            let piece = if len == 0 { None } else { Some(source.read(start, len)?) };
            wait(len).await;
            start += len;
            Ok(piece)
        };
        return remote.put_pieces(source.object, next).await;
    }
    let resumed = under_way.is_some();
    if resumed && source.is_there(remote).await {
        // It was completed, and we did not live to hear of it, or to say so.
        return Ok(());
    }
    let sent = in_parts(remote, source, under_way, &wait, save).await;
    if let Err(error) = &sent
        && resumed
        && !error.is_unreachable()
        && !matches!(error, Error::Io { .. })
    {
        // The server knows nothing of it any more: next time from the beginning.
        *under_way = None;
        save(under_way.as_ref())?;
    }
    sent
}

async fn in_parts(
    remote: &Remote,
    source: &Source<'_>,
    under_way: &mut Option<Under>,
    wait: &impl AsyncFn(u64),
    save: &mut dyn FnMut(Option<&Under>) -> Result<()>,
) -> Result<()> {
    if under_way.is_none() {
        let part_bytes = PART.max(source.bytes.div_ceil(MOST_PARTS).next_multiple_of(1 << 20));
        let upload = remote.begin(source.object).await?;
        let parts = vec![None; source.bytes.div_ceil(part_bytes) as usize];
        *under_way = Some(Under { object: source.object.to_owned(), upload, part_bytes, parts });
        save(under_way.as_ref())?;
    }
    let Under { upload, part_bytes, parts, .. } = under_way.clone().expect("just made");
    let missing: Vec<usize> = (0..parts.len()).filter(|part| parts[*part].is_none()).collect();
    log::debug!("{}: {} of {} parts to upload", remote.url_of(source.object), missing.len(), parts.len());
    let send = async |part: usize| {
        let start = part as u64 * part_bytes;
        let len = part_bytes.min(source.bytes - start);
        wait(len).await;
        let name = remote.put_part(source.object, &upload, part, source.read(start, len)?).await?;
        Ok::<_, Error>((part, name))
    };
    let mut sent = stream::iter(missing).map(send).buffer_unordered(AT_ONCE);
    while let Some(part) = sent.next().await {
        let (part, name) = part?;
        under_way.as_mut().expect("just made").parts[part] = Some(name);
        save(under_way.as_ref())?;
    }
    drop(sent);
    let all = under_way.as_ref().expect("just made").parts.iter().flatten().cloned().collect();
    remote.complete(source.object, &upload, all).await
}
