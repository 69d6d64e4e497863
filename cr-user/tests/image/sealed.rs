//! Sealed stores and signed images: nothing can be read without the key, and nothing changed without being found.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use cr::disk::Disk;
use cr::image::{self, Compression, Content, Extent, Image, IndexInfo, PAGE_SIZE, Parent, Space};
use cr::seal::{self, Keys, Secret, Signer, Trust};
use cr::store::{Chain, Error, MARKER, Result, Store, StoreWriter};

use crate::format::{FOOTER, field};
use crate::{FILES, KNOWN, Random, THREADS};

const PATTERN: &[u8] = b"what only the job should know";

fn private(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("write");
    fs::set_permissions(path, Permissions::from_mode(0o600)).expect("mode");
}

pub fn key(byte: u8) -> Keys {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("key");
    private(&path, &[byte; 32]);
    Keys { secret: Some(Arc::new(Secret::from_key_file(&path).expect("a key"))), ..Keys::default() }
}

pub fn signer() -> (Arc<Signer>, Trust) {
    let dir = tempfile::tempdir().expect("tempdir");
    let (secret, public) = Signer::generate().expect("a pair");
    let path = dir.path().join("pair");
    private(&path, secret.as_bytes());
    let signer = Arc::new(Signer::read(&path).expect("a signer"));
    fs::write(&path, public).expect("write");
    let mut trust = Trust::default();
    trust.add_file(&path).expect("a public key");
    (signer, trust)
}

fn create(dir: &Path, keys: &Keys) -> Result<Store> {
    Store::create_or_open_with(&Disk::default(), dir, KNOWN, keys)
}

fn writer(dir: &Path, keys: &Keys) -> StoreWriter {
    create(dir, keys).expect("a store").lock().expect("the lock")
}

/// Publishes pages that hold the pattern, some of which cannot be compressed, with a record of three units; says what they are.
fn publish(writer: &StoreWriter, compression: Compression, pages: usize, parent: Option<Parent>) -> (Parent, Vec<u8>) {
    let mut bytes = Random(pages as u64 + 1).pages(pages);
    for (n, page) in bytes.chunks_exact_mut(PAGE_SIZE).enumerate() {
        page[n..n + PATTERN.len()].copy_from_slice(PATTERN);
        if n % 3 == 0 {
            page[PAGE_SIZE / 8..].fill(n as u8);
        }
    }
    let image = writer.begin_packed(compression).expect("begin");
    let slot = image.put(&bytes).expect("put");
    image.allocate(20);
    image.record(THREADS, PATTERN.repeat((5 << 19) / PATTERN.len())).expect("record");
    image.record(FILES, PATTERN.to_vec()).expect("record");
    let extents = vec![Extent { first_page: 7, pages: pages as u64, content: Content::Stored { slot } }];
    let spaces = vec![Space { id: 1, extents }];
    let widened = vec![String::from_utf8(PATTERN.to_vec()).expect("text")];
    let info = IndexInfo { parent, spaces, widened, ..IndexInfo::default() };
    (writer.publish(image.finish(info).expect("finish")).expect("publish"), bytes)
}

fn holds_pattern(dir: &Path) -> bool {
    let files = fs::read_dir(dir).expect("list").map(|entry| fs::read(entry.expect("entry").path()).expect("read"));
    files.into_iter().any(|bytes| bytes.windows(16).any(|window| window == &PATTERN[..16]))
}

/// All forms that an image of a store can have.
fn forms() -> [(Keys, Compression); 7] {
    let signed = |keys: Keys| Keys { signer: Some(signer().0), ..keys };
    [
        (key(1), Compression::None),
        (key(1), Compression::Lz4),
        (key(1), Compression::Zstd),
        (signed(key(1)), Compression::None),
        (signed(key(1)), Compression::Auto),
        (signed(Keys::default()), Compression::None),
        (signed(Keys::default()), Compression::Zstd),
    ]
}

#[test]
fn what_is_sealed_comes_back_and_cannot_be_read() {
    for (keys, compression) in forms() {
        for pages in [1, 16, 45, 600] {
            let dir = tempfile::tempdir().expect("tempdir");
            let store = writer(dir.path(), &keys);
            let (_, bytes) = publish(&store, compression, pages, None);
            let image = store.store().open_image(1).expect("open");
            image.verify_pages(2).expect("whole");
            let mut read = vec![1; bytes.len()];
            image.read_pages(0, &mut read).expect("read");
            assert!(read == bytes);
            let (first, some) = (pages as u64 / 2, pages / 3);
            image
                .read_pages_from(&image.open_file().expect("open"), first, &mut read[..some * PAGE_SIZE])
                .expect("read");
            assert!(read[..some * PAGE_SIZE] == bytes[first as usize * PAGE_SIZE..][..some * PAGE_SIZE]);
            assert_eq!(image.record(FILES).expect("record"), PATTERN);
            assert!(image.record(THREADS).expect("record").starts_with(PATTERN));
            assert_eq!(image.summary().widened[0].as_bytes(), PATTERN);
            assert_eq!(image.signer(), keys.signer.as_ref().map(|signer| signer.public()));
            assert_eq!((image.is_sealed(), image.is_sealed()), (keys.secret.is_some(), store.store().is_sealed()));
            if compression != Compression::Auto {
                assert_eq!(
                    image.compression(),
                    if compression == Compression::Lz4 { Compression::Auto } else { compression }
                );
            }
            assert_eq!(holds_pattern(dir.path()), keys.secret.is_none());
            let modes =
                fs::read_dir(dir.path()).expect("list").map(|e| e.expect("entry").metadata().expect("metadata"));
            assert!(modes.into_iter().all(|file| file.permissions().mode() & 0o7777 == 0o600));
            assert_eq!(fs::metadata(dir.path()).expect("metadata").permissions().mode() & 0o7777, 0o700);
        }
    }
}

/// Every byte is guarded: also those of blocks that say nothing to a decoder, but for the padding after them.
#[test]
fn every_flipped_bit_is_found() {
    for (keys, compression) in forms() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = writer(dir.path(), &keys);
        publish(&store, compression, 40, None);
        let path = store.store().image_path(1);
        let bytes = fs::read(&path).expect("read");
        let records = field(&bytes[bytes.len() - FOOTER..], 40) as usize;
        // The padding of the page segment is the one thing that nothing speaks of; it is less than a page.
        let is_padding = |at: usize| (records - PAGE_SIZE..records).contains(&at);
        let file = File::options().write(true).open(&path).expect("open");
        let ends = (0..4096).step_by(61).chain(bytes.len() - 256 - 96..bytes.len());
        let (blocks, rest) = ((4096..records - PAGE_SIZE).step_by(997), (records..bytes.len() - 352).step_by(20_011));
        for at in ends.chain(blocks).chain(rest) {
            file.write_all_at(&[bytes[at] ^ (1 << (at % 8))], at as u64).expect("write");
            let found = store.store().open_image(1).and_then(|image| Ok(image.verify_pages(1)?));
            assert!(found.is_err() || is_padding(at), "byte {at} of {} is not guarded", bytes.len());
            file.write_all_at(&[bytes[at]], at as u64).expect("write");
        }
        for len in (0..bytes.len()).step_by(40_009).chain([bytes.len() - 1]) {
            file.set_len(len as u64).expect("cut");
            assert!(store.store().open_image(1).is_err(), "cut to {len}");
            file.write_all_at(&bytes, 0).expect("write");
        }
        store.store().open_image(1).and_then(|image| Ok(image.verify_pages(1)?)).expect("it is whole again");
    }
}

/// Who has no key can make hashes that fit, but no more.
#[test]
fn hashes_that_fit_do_not_help() {
    for (keys, compression) in forms() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = writer(dir.path(), &keys);
        publish(&store, compression, 40, None);
        let path = store.store().image_path(1);
        let bytes = fs::read(&path).expect("read");
        let footer = bytes.len() - FOOTER;
        let records = field(&bytes[footer..], 40) as usize;
        let signature = if keys.signer.is_some() { 96 } else { 0 };
        let opened = |what: &str, change: &dyn Fn(&mut Vec<u8>)| {
            let mut forged = bytes.clone();
            change(&mut forged);
            let hash = blake3::hash(&forged[..4064]);
            forged[4064..4096].copy_from_slice(hash.as_bytes());
            let mut hasher = blake3::Hasher::new();
            hasher.update(&forged[..4096]).update(&forged[records..footer - signature]);
            forged[footer + 96..footer + 128].copy_from_slice(hasher.finalize().as_bytes());
            let hash = blake3::hash(&forged[footer..footer + 224]);
            forged[footer + 224..].copy_from_slice(hash.as_bytes());
            fs::write(&path, &forged).expect("write");
            let found = store.store().open_image(1).and_then(|image| Ok(image.verify_pages(1)?));
            assert!(found.is_err(), "{what} was not found");
        };
        opened("another record", &|bytes| bytes[records + 5] ^= 1);
        opened("another end of the index", &|bytes| bytes[footer - signature - 1] ^= 1);
        opened("another parent", &|bytes| bytes[footer + 80] = 1);
        opened("something in the reserved part of the header", &|bytes| bytes[200] = 1);
        opened("another salt", &|bytes| bytes[64] ^= 1);
        opened("no signature", &|bytes| bytes[34] ^= 1);
        opened("no encryption", &|bytes| bytes[33] ^= 1);
        if compression == Compression::None {
            // Blocks of the same length in each other's places, as they are in the first 32 slots.
            let len = 16 * PAGE_SIZE + if keys.secret.is_some() { seal::TAG_BYTES } else { 0 };
            opened("blocks in each other's place", &|bytes| {
                let (first, second) = bytes[4096..4096 + 2 * len].split_at_mut(len);
                first.swap_with_slice(second);
            });
        }
    }
}

#[test]
fn another_key_opens_nothing() {
    let (dir, plain) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    publish(&writer(dir.path(), &key(1)), Compression::None, 3, None);
    let (closed, before) =
        (Store::open_existing(dir.path(), KNOWN).expect("a store"), fs::read(dir.path().join(MARKER)));
    let refused = |store: Result<Store>| store.and_then(|store| store.open_image(1)).expect_err("it is sealed");
    for (error, words) in [
        (refused(Ok(closed)), "is sealed: give its key by --key-file FILE"),
        (refused(Store::create_or_open(dir.path(), KNOWN)), "is sealed: give its key by --key-file FILE"),
        (refused(create(dir.path(), &key(2))), "was sealed with another key file"),
        (refused(Store::open_existing_with(dir.path(), KNOWN, &key(2))), "was sealed with another key file"),
    ] {
        assert!(error.to_string().contains(words) && error.exit_code() == 119, "{error}");
    }
    assert_eq!(fs::read(dir.path().join(MARKER)).ok(), before.ok());

    publish(&writer(plain.path(), &Keys::default()), Compression::None, 3, None);
    let error = refused(create(plain.path(), &key(1)));
    assert!(error.to_string().contains("is not sealed, and the key file") && error.exit_code() == 119, "{error}");
    let marker = fs::read_to_string(plain.path().join(MARKER)).expect("read");
    assert!(marker.starts_with(r#"{"format":1,"job":""#) && marker.len() == 53, "{marker}");
}

/// The marker decides whether images are sealed, not the image.
#[test]
fn images_of_the_other_kind_are_refused() {
    let (dir, plain) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
    publish(&writer(dir.path(), &key(1)), Compression::None, 3, None);
    publish(&writer(plain.path(), &Keys::default()), Compression::None, 3, None);
    let (sealed_one, plain_one) = (dir.path().join("00000001.cr"), plain.path().join("00000001.cr"));
    fs::copy(&plain_one, dir.path().join("00000002.cr")).expect("copy");
    fs::copy(&sealed_one, plain.path().join("00000002.cr")).expect("copy");
    let kind = |error: Error| match error {
        Error::Image(error) => error,
        other => panic!("{other}"),
    };
    let error = kind(create(dir.path(), &key(1)).expect("open").open_image(2).expect_err("not sealed"));
    assert!(matches!(error, image::Error::NotSealed { .. }), "{error}");
    let error = kind(Store::open_existing(plain.path(), KNOWN).expect("open").open_image(2).expect_err("sealed"));
    assert!(matches!(error, image::Error::Sealed { .. }), "{error}");
    // Under another store's key, of the same job.
    let text = fs::read_to_string(dir.path().join(MARKER)).expect("read");
    let other = tempfile::tempdir().expect("tempdir");
    drop(create(other.path(), &key(1)).expect("a store"));
    let job = |text: &str| text.split("\"job\":\"").nth(1).expect("a job")[..32].to_owned();
    let theirs = fs::read_to_string(other.path().join(MARKER)).expect("read");
    fs::write(other.path().join(MARKER), theirs.replace(&job(&theirs), &job(&text))).expect("write");
    let error = create(other.path(), &key(1)).expect_err("the marker was changed");
    assert!(matches!(error, Error::Seal(seal::Error::Wrong { .. })), "{error}");
    let error = Image::open(&sealed_one, KNOWN).expect_err("no key");
    assert!(matches!(error, image::Error::Sealed { .. }), "{error}");
}

#[test]
fn a_chain_is_trusted_if_each_image_is_signed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let ((ours, trust), (theirs, their_trust)) = (signer(), signer());
    let with = |signer: Option<&Arc<Signer>>, trust: &Trust| Keys {
        signer: signer.cloned(),
        trust: trust.clone(),
        ..Keys::default()
    };
    let mut parent = None;
    let mut publish_by = |signer: Option<&Arc<Signer>>, full: bool| {
        let parent_of_it = parent.filter(|_| !full);
        parent =
            Some(publish(&writer(dir.path(), &with(signer, &Trust::Anybody)), Compression::None, 2, parent_of_it).0);
    };
    publish_by(Some(&ours), true);
    publish_by(Some(&ours), false);
    publish_by(None, false);
    publish_by(Some(&theirs), false);
    publish_by(Some(&ours), false);
    publish_by(Some(&ours), true);
    let check = |id: u64, trust: &Trust| {
        let store = create(dir.path(), &with(None, trust)).expect("open");
        store.check_trust(&Chain::open(&store, Some(id)).expect("a chain"))
    };
    for id in [1, 2, 6] {
        check(id, &trust).expect("we have signed all of it");
    }
    for id in 1..=6 {
        check(id, &Trust::Anybody).expect("anybody's");
        assert!(check(id, &their_trust).is_err());
    }
    let error = check(5, &trust).expect_err("3 and 4 are not ours");
    let said = error.to_string();
    assert!(
        said.contains("checkpoint 3 is not signed, checkpoint 4 is signed by cr-ed25519 ") && error.exit_code() == 119,
        "{said}"
    );
    assert!(said.contains(&theirs.public().to_string()) && !said.contains("checkpoint 5"), "{said}");
    assert!(check(3, &trust).is_err() && check(4, &trust).is_err());
}
