//! What is done to the objects of one prefix, each operation by one function here.

use std::ops::Range;
use std::sync::Arc;

use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use super::manifest::{Manifest, manifest_name, parse_manifest_name};
use super::{Error, Result};

/// The objects of one prefix.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    url: String,
    prefix: Path,
    store: Arc<dyn ObjectStore>,
    /// None where an upload cannot be gone on with by another process.
    parts: Option<Parts>,
}

/// The way to upload an object in parts.
#[derive(Clone)]
pub(super) struct Parts(Arc<dyn MultipartStore>);

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Parts")
    }
}

impl Remote {
    /// In a store that takes uploads in parts by their names.
    pub(super) fn new<S: ObjectStore + MultipartStore>(url: String, prefix: Path, store: S) -> Self {
        let store = Arc::new(store);
        Self { url, prefix, store: store.clone(), parts: Some(Parts(store)) }
    }

    /// In a store that does not.
    pub(super) fn plain(url: String, prefix: Path, store: impl ObjectStore) -> Self {
        Self { url, prefix, store: Arc::new(store), parts: None }
    }

    /// Where it is, for messages.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Where an object is, for messages.
    pub(super) fn url_of(&self, name: &str) -> String {
        format!("{}/{name}", self.url.trim_end_matches('/'))
    }

    fn path(&self, name: &str) -> Path {
        self.prefix.clone().join(name)
    }

    fn failed(&self, name: &str, doing: &'static str) -> impl Fn(object_store::Error) -> Error {
        let url = self.url_of(name);
        move |source| Error::of(url.clone(), doing, &source)
    }

    /// The numbers of the checkpoints that are there, ascending.
    pub(super) async fn ids(&self) -> Result<Vec<u64>> {
        let listed = self.store.list_with_delimiter(Some(&self.prefix)).await;
        let listed = listed.map_err(|source| Error::of(self.url.clone(), "list", &source))?;
        let names = listed.objects.iter().filter_map(|object| object.location.filename());
        let mut ids: Vec<u64> = names.filter_map(parse_manifest_name).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// An object's bytes; none if it is not there.
    pub(super) async fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let read = async { self.store.get(&self.path(name)).await?.bytes().await };
        match read.await.map_err(self.failed(name, "read")) {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(Error::Gone { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The description of a checkpoint; none if it is not there.
    pub(super) async fn manifest(&self, id: u64) -> Result<Option<Manifest>> {
        let name = manifest_name(id);
        let Some(text) = self.get(&name).await? else { return Ok(None) };
        Manifest::parse(&self.url_of(&name), id, &text).map(Some)
    }

    /// A part of an object, which must have so many bytes.
    pub(super) async fn get_range(&self, name: &str, range: Range<u64>) -> Result<impl AsRef<[u8]> + use<>> {
        let asked = (range.end - range.start) as usize;
        let bytes = self.store.get_range(&self.path(name), range).await.map_err(self.failed(name, "read"))?;
        if bytes.len() != asked {
            let what = format!("it ends in the middle of what was read: {} of {asked} bytes", bytes.len());
            return Err(Error::Damaged { url: self.url_of(name), what });
        }
        Ok(bytes)
    }

    /// Makes an object, in place of one that is there.
    pub(super) async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let put = self.store.put(&self.path(name), PutPayload::from(bytes)).await;
        put.map(drop).map_err(self.failed(name, "write"))
    }

    /// Makes an object if there is none of that name, and says whether it did.
    pub(super) async fn put_new(&self, name: &str, bytes: Vec<u8>) -> Result<bool> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(&self.path(name), PutPayload::from(bytes), options).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
            Err(source) => Err(self.failed(name, "write")(source)),
        }
    }

    /// Removes an object, if it is there.
    pub(super) async fn remove(&self, name: &str) -> Result<()> {
        match self.store.delete(&self.path(name)).await.map_err(self.failed(name, "remove")) {
            Err(Error::Gone { .. }) => Ok(()),
            other => other,
        }
    }

    /// Whether uploads can be gone on with later, by another process too.
    pub(super) fn resumes(&self) -> bool {
        self.parts.is_some()
    }

    /// Begins an upload in parts, and gives its name.
    pub(super) async fn begin(&self, name: &str) -> Result<String> {
        let Parts(parts) = self.parts.as_ref().expect("asked before");
        parts.create_multipart(&self.path(name)).await.map_err(self.failed(name, "write"))
    }

    /// Uploads one part, and gives its name.
    pub(super) async fn put_part(&self, name: &str, upload: &str, part: usize, bytes: Vec<u8>) -> Result<String> {
        let Parts(parts) = self.parts.as_ref().expect("asked before");
        let put = parts.put_part(&self.path(name), &upload.to_owned(), part, PutPayload::from(bytes)).await;
        put.map(|part| part.content_id).map_err(self.failed(name, "write"))
    }

    /// Makes an object of the parts.
    pub(super) async fn complete(&self, name: &str, upload: &str, all: Vec<String>) -> Result<()> {
        let Parts(parts) = self.parts.as_ref().expect("asked before");
        let all = all.into_iter().map(|content_id| PartId { content_id }).collect();
        let completed = parts.complete_multipart(&self.path(name), &upload.to_owned(), all).await;
        completed.map(drop).map_err(self.failed(name, "write"))
    }

    /// Drops an upload, so that nobody pays for its parts.
    pub(super) async fn abort(&self, name: &str, upload: &str) -> Result<()> {
        let Parts(parts) = self.parts.as_ref().expect("asked before");
        parts.abort_multipart(&self.path(name), &upload.to_owned()).await.map_err(self.failed(name, "remove"))
    }

    /// Makes an object piece by piece, where that cannot be gone on with later.
    pub(super) async fn put_pieces(
        &self,
        name: &str,
        mut next: impl AsyncFnMut() -> Result<Option<Vec<u8>>>,
    ) -> Result<()> {
        let failed = self.failed(name, "write");
        let mut upload = self.store.put_multipart(&self.path(name)).await.map_err(&failed)?;
        let written = async {
            while let Some(piece) = next().await? {
                upload.put_part(PutPayload::from(piece)).await.map_err(&failed)?;
            }
            upload.complete().await.map(drop).map_err(&failed)
        };
        let written = written.await;
        if written.is_err() {
            let _ = upload.abort().await;
        }
        written
    }
}
