//! Names of buckets, and the way to them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::{BackoffConfig, ClientConfigKey, ObjectStoreScheme, RetryConfig};
use url::Url;

use super::remote::Remote;
use super::{Error, Result};

/// How long a request may take, a part of an image among them, unless the environment says otherwise (`AWS_TIMEOUT` and the like).
const TIMEOUT: &str = "300s";

/// A prefix in a bucket, by its URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location(Url);

impl Location {
    /// The location that a `--store` names; none if it is a directory.
    ///
    /// # Errors
    /// [`Error::BadUrl`].
    pub fn of(name: &Path) -> Result<Option<Self>> {
        let Some(text) = name.to_str().filter(|text| text.contains("://")) else { return Ok(None) };
        Self::parse(text).map(Some)
    }

    /// # Errors
    /// [`Error::BadUrl`].
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |url: &str, why: &str| Error::BadUrl { url: url.to_owned(), why: why.to_owned() };
        let url = Url::parse(text).map_err(|why| bad(text, &why.to_string()))?;
        if url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            // Everybody on the machine sees a command line.
            let shown = format!("{}://{}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path());
            return Err(bad(&shown, "it has more than a bucket and a prefix; credentials belong into the environment"));
        }
        match ObjectStoreScheme::parse(&url) {
            Ok((ObjectStoreScheme::Local, path)) if path.as_ref().is_empty() => {
                Err(bad(text, "a directory is missing"))
            }
            Ok((
                ObjectStoreScheme::AmazonS3
                | ObjectStoreScheme::GoogleCloudStorage
                | ObjectStoreScheme::MicrosoftAzure
                | ObjectStoreScheme::Local,
                _,
            )) => Ok(Self(url)),
            Ok(_) => Err(bad(text, "checkpoints cannot be kept in a place of that kind")),
            Err(why) => Err(bad(text, &why.to_string())),
        }
    }

    /// The way there. No connection is made yet.
    pub(super) fn open(&self) -> Result<Remote> {
        let bad = |why: &dyn fmt::Display| Error::BadUrl { url: self.to_string(), why: why.to_string() };
        let (scheme, prefix) = ObjectStoreScheme::parse(&self.0).map_err(|why| bad(&why))?;
        let url = self.0.as_str();
        // Whatever else in this program may use TLS would do the same; the first one wins, and that is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let timeout = |variable: &str| std::env::var(variable).unwrap_or_else(|_| TIMEOUT.to_owned());
        let failed = |why: object_store::Error| bad(&why);
        Ok(match scheme {
            ObjectStoreScheme::AmazonS3 => {
                let key = AmazonS3ConfigKey::Client(ClientConfigKey::Timeout);
                let builder = AmazonS3Builder::from_env().with_url(url).with_config(key, timeout("AWS_TIMEOUT"));
                Remote::new(self.to_string(), prefix, builder.with_retry(retries()).build().map_err(failed)?)
            }
            ObjectStoreScheme::GoogleCloudStorage => {
                let key = GoogleConfigKey::Client(ClientConfigKey::Timeout);
                let builder = GoogleCloudStorageBuilder::from_env().with_url(url);
                let builder = builder.with_config(key, timeout("GOOGLE_TIMEOUT"));
                Remote::new(self.to_string(), prefix, builder.with_retry(retries()).build().map_err(failed)?)
            }
            ObjectStoreScheme::MicrosoftAzure => {
                let key = AzureConfigKey::Client(ClientConfigKey::Timeout);
                let builder =
                    MicrosoftAzureBuilder::from_env().with_url(url).with_config(key, timeout("AZURE_TIMEOUT"));
                Remote::new(self.to_string(), prefix, builder.with_retry(retries()).build().map_err(failed)?)
            }
            _ => Remote::plain(self.to_string(), prefix, LocalFileSystem::new().with_fsync(true)),
        })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

/// A request is tried again at once, a few times. Whoever has more patience asks again.
fn retries() -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(2),
        ..BackoffConfig::default()
    };
    RetryConfig { backoff, max_retries: 4, retry_timeout: Duration::from_secs(60) }
}

/// The directory on this machine that belongs to a location, if nobody names another: of root below `/var/lib/cr/spool`, of others below
/// `$XDG_STATE_HOME/cr/spool` (`~/.local/state/cr/spool`).
///
/// # Errors
/// [`Error::NoSpool`].
pub fn default_spool(location: &Location) -> Result<PathBuf> {
    let state = || std::env::var_os("XDG_STATE_HOME").filter(|dir| Path::new(dir).is_absolute()).map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state"));
    let above = if nix::unistd::geteuid().is_root() {
        PathBuf::from("/var/lib/cr/spool")
    } else {
        state().or_else(home).ok_or(Error::NoSpool)?.join("cr/spool")
    };
    Ok(above.join(directory_name(&location.to_string())))
}

/// A name that people can read, and that no two URLs have.
fn directory_name(url: &str) -> String {
    let readable = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let url = url.trim_end_matches('/');
    let words: String = url.replace("://", "-").chars().map(readable).take(100).collect();
    format!("{words}-{}", &blake3::hash(url.as_bytes()).to_hex()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_told_from_directories() {
        assert_eq!(Location::of(Path::new("ckpt")).unwrap(), None);
        assert_eq!(Location::of(Path::new("/a/s3:/b")).unwrap(), None);
        for good in ["s3://bucket", "s3://bucket/a/b", "gs://b/p", "az://c/p", "file:///srv/ckpt"] {
            assert!(Location::of(Path::new(good)).unwrap().is_some(), "{good}");
        }
        for bad in
            ["s3://", "http://host/p", "memory:///", "ftp://x/y", "file:///", "s3://key:secret@b/p", "s3://b/p?x=1"]
        {
            let error = Location::parse(bad).unwrap_err();
            assert!(error.exit_code() == 2 && !error.to_string().contains("secret"), "{bad}: {error}");
        }
    }

    #[test]
    fn spools_have_names_of_their_own() {
        let names = ["s3://b/p", "s3://b/p2", "s3://b-p", "gs://b/p"].map(directory_name);
        assert!(names[0].starts_with("s3-b-p-"), "{names:?}");
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), 4, "{names:?}");
        assert_eq!(directory_name("s3://b/p/"), directory_name("s3://b/p"));
    }
}
