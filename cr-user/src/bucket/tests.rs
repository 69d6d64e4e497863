//! Against a bucket in memory, each of whose operations can be made to fail.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Location;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::fetch::fetch_from;
use super::manifest::data_name;
use super::remote::Remote;
use super::state::{State, Turn};
use super::{Error, Gate, Mirror, Need, Passed, runtime};
use crate::disk::Disk;
use crate::image::{Content, Extent, IndexInfo, PAGE_SIZE, Parent, RecordKind, Space};
use crate::seal::{self, KEY_FILE_BYTES, Keys, Secret};
use crate::store::{self, Chain, Store, StoreWriter};

const KIND: RecordKind = RecordKind { id: 1, version: 1, name: "test" };
const URL: &str = "s3://bucket/job";
/// Pages of an image that is uploaded in three parts.
const MANY: u64 = (17 << 20) / PAGE_SIZE as u64;

/// What fails, and what was done.
#[derive(Debug, Default)]
struct Faults {
    /// Operations until one fails, and all after it: the network is down. Negative: none.
    left: AtomicI64,
    done: Mutex<Vec<String>>,
}

impl Faults {
    fn step(&self, operation: &str, location: &Location) -> Result<()> {
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            return Err(object_store::Error::Generic { store: "test", source: "the network is down".into() });
        }
        self.left.store(left - 1, Ordering::Relaxed);
        self.done.lock().unwrap().push(format!("{operation} {}", location.filename().unwrap_or_default()));
        Ok(())
    }

    fn count(&self, operation: &str) -> usize {
        self.done.lock().unwrap().iter().filter(|done| done.starts_with(operation)).count()
    }
}

#[derive(Clone, Debug)]
struct Flaky {
    inner: Arc<InMemory>,
    faults: Arc<Faults>,
}

impl fmt::Display for Flaky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("flaky")
    }
}

#[async_trait]
impl ObjectStore for Flaky {
    async fn put_opts(&self, location: &Location, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.faults.step("put", location)?;
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Location,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.faults.step("pieces", location)?;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Location, options: GetOptions) -> Result<GetResult> {
        self.faults.step("get", location)?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Location>>) -> BoxStream<'static, Result<Location>> {
        let faults = self.faults.clone();
        let locations = locations.map(move |location| {
            let location = location?;
            faults.step("delete", &location)?;
            Ok(location)
        });
        self.inner.delete_stream(locations.boxed())
    }

    fn list(&self, prefix: Option<&Location>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Location>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Location, to: &Location, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[async_trait]
impl MultipartStore for Flaky {
    async fn create_multipart(&self, path: &Location) -> Result<MultipartId> {
        self.faults.step("begin", path)?;
        self.inner.create_multipart(path).await
    }

    async fn put_part(&self, path: &Location, id: &MultipartId, part: usize, data: PutPayload) -> Result<PartId> {
        self.faults.step("part", path)?;
        self.inner.put_part(path, id, part, data).await
    }

    async fn complete_multipart(&self, path: &Location, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        self.faults.step("complete", path)?;
        self.inner.complete_multipart(path, id, parts).await
    }

    async fn abort_multipart(&self, path: &Location, id: &MultipartId) -> Result<()> {
        self.faults.step("abort", path)?;
        self.inner.abort_multipart(path, id).await
    }
}

/// A bucket that works until it is told not to.
struct Bucket {
    faults: Arc<Faults>,
    remote: Remote,
}

impl Bucket {
    fn new() -> Self {
        let faults = Arc::new(Faults { left: AtomicI64::new(-1), ..Faults::default() });
        let flaky = Flaky { inner: Arc::new(InMemory::new()), faults: faults.clone() };
        Self { remote: Remote::new(URL.to_owned(), Location::from("job"), flaky), faults }
    }

    /// The network goes down after so many operations; none for not at all.
    fn fails_after(&self, operations: Option<i64>) {
        self.faults.left.store(operations.unwrap_or(-1), Ordering::Relaxed);
    }

    /// One pass by a new process.
    fn pass(&self, store: &Store) -> super::Result<Passed> {
        let turn = Turn::take(&Disk::default(), store.dir(), Duration::ZERO)?;
        Mirror::with(store, self.remote.clone(), None, turn, &Gate::default())?.pass()
    }

    /// The numbers of the checkpoints that are there. Each has its parent, and the image that it names, with all its bytes.
    fn sound(&self, store: &Store, images: &Path) -> Vec<u64> {
        self.fails_after(None);
        runtime().unwrap().block_on(async {
            let ids = self.remote.ids().await.unwrap();
            for &id in &ids {
                let manifest = self.remote.manifest(id).await.unwrap().expect("it was listed");
                assert!(manifest.parent.iter().all(|parent| ids.contains(&parent.id)), "{id} has no parent: {ids:?}");
                let there = self.remote.get(&manifest.object).await.unwrap();
                let name = store.image_path(id).file_name().unwrap().to_owned();
                assert!(there == fs::read(images.join(name)).ok(), "the image of {id} is not what it was");
            }
            ids
        })
    }
}

/// Publishes a checkpoint with so many pages from `first` on.
fn publish(writer: &StoreWriter, parent: Option<Parent>, first: u64, pages: u64) -> Parent {
    let image = writer.begin().unwrap();
    let mut bytes = vec![0; pages as usize * PAGE_SIZE];
    for (number, page) in bytes.chunks_mut(PAGE_SIZE).enumerate() {
        page[..8].copy_from_slice(&(first + number as u64 + 1000 * image.id()).to_le_bytes());
    }
    let slot = image.put(&bytes).unwrap();
    image.record(KIND, vec![image.id() as u8; 100]).unwrap();
    let extents = vec![Extent { first_page: first, pages, content: Content::Stored { slot } }];
    let info = IndexInfo { parent, spaces: vec![Space { id: 1, extents }], ..IndexInfo::default() };
    writer.publish(image.finish(info).unwrap()).unwrap()
}

/// A chain of four, the first of which is large, in a directory that has copies of its images beside it.
fn chain(dir: &Path) -> Store {
    chain_with(dir, &Keys::default())
}

fn chain_with(dir: &Path, keys: &Keys) -> Store {
    let store = Store::create_or_open_with(&Disk::default(), &dir.join("spool"), &[KIND], keys).unwrap();
    let writer = store.lock().unwrap();
    let full = publish(&writer, None, 0, MANY);
    let delta = publish(&writer, Some(full), 10, 2000);
    let delta = publish(&writer, Some(delta), 500, 3);
    publish(&writer, Some(delta), 0, 1);
    fs::create_dir(dir.join("images")).unwrap();
    for id in 1..=4 {
        let path = writer.store().image_path(id);
        fs::copy(&path, dir.join("images").join(path.file_name().unwrap())).unwrap();
    }
    writer.store().clone()
}

#[test]
fn wherever_the_network_goes_down_the_bucket_is_sound_and_the_rest_follows() {
    let dir = tempfile::tempdir().unwrap();
    let store = chain(dir.path());
    let images = dir.path().join("images");
    for operations in 0.. {
        let bucket = Bucket::new();
        let _ = fs::remove_file(store.dir().join(super::STATE));
        bucket.fails_after(Some(operations));
        let failed = bucket.pass(&store).is_err();
        let there = bucket.sound(&store, &images);
        assert!(
            there.iter().eq((1..=4).collect::<Vec<_>>()[..there.len()].iter()),
            "not from the oldest on: {there:?}"
        );
        if !failed {
            assert!(operations > 12 && there.len() == 4, "{operations} operations for {there:?}");
            break;
        }
        bucket.pass(&store).expect("the network is back");
        assert_eq!(bucket.sound(&store, &images), [1, 2, 3, 4], "after {operations} operations");
        // At most one part is sent again.
        assert!(bucket.faults.count("part") <= 4, "{:?}", bucket.faults.done);
    }
}

#[test]
fn what_is_pruned_goes_newest_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = chain(dir.path());
    let images = dir.path().join("images");
    for operations in 0.. {
        let bucket = Bucket::new();
        for id in 1..=4 {
            let path = store.image_path(id);
            fs::copy(images.join(path.file_name().unwrap()), &path).unwrap();
        }
        let _ = fs::remove_file(store.dir().join(super::STATE));
        bucket.pass(&store).unwrap();
        (3..=4).for_each(|id| fs::remove_file(store.image_path(id)).unwrap());
        bucket.fails_after(Some(operations));
        let failed = bucket.pass(&store).is_err();
        let there = bucket.sound(&store, &images);
        bucket.pass(&store).expect("the network is back");
        assert_eq!(bucket.sound(&store, &images), [1, 2], "after {operations} operations: {there:?}");
        let left = runtime().unwrap().block_on(async { bucket.remote.get(&data_of(&store, 4)).await.unwrap() });
        assert!(left.is_none(), "the image is still there");
        if !failed {
            break;
        }
    }
}

/// The object of an image, by its copy.
fn data_of(store: &Store, id: u64) -> String {
    let name = store.image_path(id).file_name().unwrap().to_owned();
    let copy = store.dir().parent().unwrap().join("images").join(name);
    let image = crate::image::Image::open(&copy, &[KIND]).unwrap();
    data_name(id, &crate::hex::encode(&image.as_parent().hash))
}

#[test]
fn an_interrupted_upload_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let store = chain(dir.path());
    let bucket = Bucket::new();
    // The marker, the beginning, and the first part.
    bucket.fails_after(Some(3));
    assert!(bucket.pass(&store).is_err());
    let before = State::read(store.dir(), URL).unwrap();
    assert!(before.error.is_some() && before.under_way.is_some(), "{before:?}");
    bucket.fails_after(None);
    bucket.pass(&store).unwrap();
    assert_eq!((bucket.faults.count("begin"), bucket.faults.count("part")), (1, 3), "{:?}", bucket.faults.done);
    let after = State::read(store.dir(), URL).unwrap();
    assert!(after.error.is_none() && after.under_way.is_none() && after.uploaded.len() == 4, "{after:?}");
}

/// Validation of a spool that lacks pages finds exactly those checkpoints that cannot be restored from it; and real damage all the same.
fn expect_incomplete(spool: &Store) {
    let (url, partial) = super::partial(spool.dir()).unwrap().expect("it is a spool");
    assert_eq!(url, URL);
    let verify = || spool.verify_partial(2, &|_| None, &partial).unwrap();
    let report = verify();
    let lacks = |id: &u64| Chain::open(spool, Some(*id)).unwrap().verify_pages(1).is_err();
    let lacking: Vec<u64> = report.checkpoints.iter().copied().filter(lacks).collect();
    assert!(report.problems.is_empty() && !report.is_ok() && lacking.contains(&1), "{report:?}");
    assert_eq!((report.incomplete, report.newest_intact), (lacking, Some(4)));
    assert_eq!(spool.newest_intact_with(1, &|_| None, &partial).unwrap().newest_intact, Some(4));

    let path = spool.image_path(1);
    let good = fs::read(&path).unwrap();
    let is_there = |byte: &u8| *byte != 0;
    let at = PAGE_SIZE + good[PAGE_SIZE..].iter().position(is_there).expect("some pages are there");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[good[at] ^ 0x80], at as u64).unwrap();
    let report = verify();
    assert_eq!(report.problems.first().map(|problem| problem.id), Some(1), "{report:?}");
    assert_eq!((report.incomplete, report.newest_intact), (Vec::new(), None), "all build on it");
    file.write_all_at(&good[at..=at], at as u64).unwrap();
}

#[test]
fn a_restore_fetches_what_it_needs_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let store = chain(dir.path());
    let bucket = Bucket::new();
    bucket.pass(&store).unwrap();
    let away = dir.path().join("elsewhere/spool");
    let fetched = fetch_from(&bucket.remote, &away, &[KIND], Need::Checkpoint(None), &Keys::default()).unwrap();
    let whole: u64 = (1..=4).map(|id| fs::metadata(store.image_path(id)).unwrap().len()).sum();
    // 2000 pages of the full image were replaced.
    assert_eq!(fetched.of, whole);
    assert!(fetched.bytes < whole - 1900 * PAGE_SIZE as u64, "{fetched:?}");
    let there = Store::open_existing(&away, &[KIND]).unwrap();
    assert_eq!(there.job(), store.job());
    Chain::open(&there, None).unwrap().verify_pages(1).expect("the newest is whole");
    assert!(Chain::open(&there, Some(1)).unwrap().verify_pages(1).is_err(), "nobody asked for all of the first");
    expect_incomplete(&there);
    // An older one, on top of that; then all.
    fetch_from(&bucket.remote, &away, &[KIND], Need::Checkpoint(Some(2)), &Keys::default()).unwrap();
    Chain::open(&there, Some(2)).unwrap().verify_pages(1).expect("the second is whole");
    fetch_from(&bucket.remote, &away, &[KIND], Need::Everything, &Keys::default()).unwrap();
    for id in 1..=4 {
        assert!(fs::read(store.image_path(id)).unwrap() == fs::read(there.image_path(id)).unwrap(), "image {id}");
    }
    let again = fetch_from(&bucket.remote, &away, &[KIND], Need::Checkpoint(None), &Keys::default()).unwrap();
    assert_eq!(again.bytes, 0, "all is here");
    assert_eq!(super::partial(&away).unwrap(), Some((URL.to_owned(), BTreeSet::new())));

    // The chain goes on there.
    let writer = there.lock().unwrap();
    let newest = there.open_image(4).unwrap().as_parent();
    publish(&writer, Some(newest), 7, 2);
    assert_eq!(bucket.pass(&there).unwrap().uploaded.len(), 1);
    // And so it cannot go on here.
    let writer = store.lock().unwrap();
    let other = publish(&writer, Some(newest), 9, 2);
    let error = bucket.pass(&store).unwrap_err();
    assert!(matches!(error, Error::Conflict { id, .. } if id == other.id) && !error.passes(), "{error}");
    drop(writer);
    let error = fetch_from(&bucket.remote, store.dir(), &[KIND], Need::Metadata, &Keys::default()).unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error}");
}

#[test]
fn a_bit_that_flips_in_the_bucket_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let store = chain(dir.path());
    let bucket = Bucket::new();
    bucket.pass(&store).unwrap();
    let copy = dir.path().join("images/00000003.cr");
    let file = fs::OpenOptions::new().read(true).write(true).open(&copy).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 5000).unwrap();
    let object = data_of(&store, 3);
    runtime().unwrap().block_on(bucket.remote.put(&object, fs::read(&copy).unwrap())).unwrap();
    let away = dir.path().join("away");
    fetch_from(&bucket.remote, &away, &[KIND], Need::Everything, &Keys::default()).unwrap();
    let report = Store::open_existing(&away, &[KIND]).unwrap().verify_with(1, &|_| None).unwrap();
    assert_eq!((report.newest_intact, report.problems.first().map(|p| p.id)), (Some(2), Some(3)));
}

#[test]
fn two_jobs_do_not_share_a_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::new();
    bucket.pass(&chain(dir.path())).unwrap();
    let other = tempfile::tempdir().unwrap();
    let error = bucket.pass(&chain(other.path())).unwrap_err();
    assert!(matches!(error, Error::OtherJob { .. }) && error.exit_code() == 122, "{error}");
    let nothing = Remote::new("s3://bucket/none".into(), Location::from("none"), InMemory::new());
    let error = fetch_from(&nothing, &dir.path().join("new"), &[KIND], Need::Metadata, &Keys::default()).unwrap_err();
    assert!(matches!(error, Error::NoStore { .. }), "{error}");
    assert!(!dir.path().join("new").exists(), "nothing is made where there is nothing");
}

/// What a bucket holds of a sealed store needs the key as well, and no more of it is fetched.
#[test]
fn a_sealed_store_in_a_bucket_needs_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let key = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
    key.write_all_at(&[7; KEY_FILE_BYTES], 0).unwrap();
    let secret = Arc::new(Secret::from_key_file(&path).unwrap());
    let keys = Keys { secret: Some(secret), ..Keys::default() };
    let store = chain_with(dir.path(), &keys);
    let bucket = Bucket::new();
    bucket.pass(&store).unwrap();
    let away = dir.path().join("away");
    let error = fetch_from(&bucket.remote, &away, &[KIND], Need::Checkpoint(None), &Keys::default()).unwrap_err();
    assert!(matches!(error, Error::Store(store::Error::Seal(seal::Error::Missing { .. }))), "{error}");
    let fetched = fetch_from(&bucket.remote, &away, &[KIND], Need::Checkpoint(None), &keys).unwrap();
    assert!(fetched.bytes < fetched.of - 1900 * PAGE_SIZE as u64, "{fetched:?}");
    let there = Store::open_existing_with(&away, &[KIND], &keys).unwrap();
    let chain = Chain::open(&there, None).unwrap();
    chain.verify_pages(1).expect("the newest is whole");
    assert!(chain.newest().is_sealed());
    expect_incomplete(&there);
}
