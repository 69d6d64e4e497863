//! The object by which a checkpoint is there: its number, its identity, and in which object its image is.

use serde::{Deserialize, Serialize};

use super::{Error, Result};
use crate::hex;
use crate::image::{Image, Parent};

/// The version of what is in a bucket.
pub(super) const FORMAT: u64 = 1;

/// What the object `NNNNNNNN.json` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u64,
    /// The checkpoint's number.
    pub(super) id: u64,
    /// Its job.
    pub(super) job: String,
    /// The image's metadata hash, in hex.
    pub(super) hash: String,
    /// What it builds on.
    pub(super) parent: Option<Identity>,
    /// Size of the image.
    pub(super) bytes: u64,
    /// The object that holds the image, beside this one.
    pub(super) object: String,
}

/// Which image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Its number.
    pub(super) id: u64,
    /// Its metadata hash, in hex.
    pub(super) hash: String,
}

impl Manifest {
    /// Of an image in the spool.
    pub(super) fn of(image: &Image) -> Self {
        let Parent { id, hash } = image.as_parent();
        let hash = hex::encode(&hash);
        Self {
            format: FORMAT,
            id,
            job: image.job().to_string(),
            parent: image.parent().map(|parent| Identity { id: parent.id, hash: hex::encode(&parent.hash) }),
            bytes: image.summary().file_bytes,
            object: data_name(id, &hash),
            hash,
        }
    }

    /// Reads what `url` holds, which is to be about checkpoint `id`.
    pub(super) fn parse(url: &str, id: u64, text: &[u8]) -> Result<Self> {
        let damaged = |what: String| Error::Damaged { url: url.to_owned(), what };
        check_format(url, text)?;
        let manifest: Self = serde_json::from_slice(text).map_err(|why| damaged(why.to_string()))?;
        if manifest.id != id {
            return Err(damaged(format!("it is about checkpoint {}", manifest.id)));
        }
        // So that no manifest leads out of its prefix.
        let is_hash = hex::decode::<32>(&manifest.hash).is_some();
        if !is_hash || manifest.object != data_name(id, &manifest.hash) {
            return Err(damaged(format!("it names the object `{}`", manifest.object)));
        }
        Ok(manifest)
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a plain structure")
    }
}

/// A newer format is told apart from damage.
pub(super) fn check_format(url: &str, text: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    struct Format {
        format: u64,
    }
    let damaged = |why: serde_json::Error| Error::Damaged { url: url.to_owned(), what: why.to_string() };
    let Format { format: found } = serde_json::from_slice(text).map_err(damaged)?;
    if found == FORMAT { Ok(()) } else { Err(Error::OtherFormat { url: url.to_owned(), found, known: FORMAT }) }
}

/// The name of the object that holds an image. It has the image's hash in it: two writers never write to the same one.
pub(super) fn data_name(id: u64, hash: &str) -> String {
    format!("{id:08}-{hash}.cr")
}

/// The name of the object that makes a checkpoint be there.
pub(super) fn manifest_name(id: u64) -> String {
    format!("{id:08}.json")
}

/// The inverse of [`manifest_name`].
pub(super) fn parse_manifest_name(name: &str) -> Option<u64> {
    let id = name.strip_suffix(".json")?.parse().ok()?;
    (manifest_name(id) == name).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_leads_nowhere_else() {
        let hash = "ab".repeat(32);
        let good = Manifest {
            format: FORMAT,
            id: 7,
            job: "0".repeat(32),
            parent: None,
            bytes: 8192,
            object: data_name(7, &hash),
            hash,
        };
        assert_eq!(Manifest::parse("s3://b/7", 7, &good.to_json()).unwrap(), good);
        assert!(Manifest::parse("s3://b/8", 8, &good.to_json()).is_err());
        let newer = Manifest { format: 2, ..good.clone() };
        let error = Manifest::parse("s3://b/7", 7, &newer.to_json()).unwrap_err();
        assert!(matches!(error, Error::OtherFormat { found: 2, known: 1, .. }), "{error}");
        for object in ["../../other", "00000007-.cr", "cr-store.json"] {
            let elsewhere = Manifest { object: object.into(), ..good.clone() };
            assert!(Manifest::parse("s3://b/7", 7, &elsewhere.to_json()).is_err(), "{object}");
        }
    }

    #[test]
    fn names_of_manifests_are_found_again() {
        for id in [1, 12_345_678, 123_456_789] {
            assert_eq!(parse_manifest_name(&manifest_name(id)), Some(id));
        }
        for other in ["cr-store.json", "1.json", "00000001.cr", "000000001.json"] {
            assert_eq!(parse_manifest_name(other), None, "{other}");
        }
    }
}
