//! Whether a checkpoint is a whole: its records fit together (`references`), and the chain holds just the memory of which they
//! speak (`coverage`). Pages, hashes and parents are for [`crate::store`] to check.
//!
//! `cr verify` and `cr restore` ask the same. It depends on nothing but the chain: whether a job can be restored on this machine,
//! now, is another question.

mod coverage;
mod references;

use crate::error::{Error, Result};
use crate::image;
use crate::recorded::Records;
use crate::store::Chain;

/// Reads the records of a chain's newest image and checks all that they say.
///
/// # Errors
/// What is wrong, as damage of the newest image.
pub fn check(chain: &Chain) -> Result<()> {
    of(chain, &Records::read(chain)?)
}

/// The same, of records that were read.
///
/// # Errors
/// What is wrong, as damage of the newest image.
pub fn of(chain: &Chain, records: &Records) -> Result<()> {
    of_records(chain, records)?;
    coverage::check(chain, records).map_err(|what| damaged(chain, what))
}

/// The same, but for what the chain holds of the job's memory.
///
/// # Errors
/// What is wrong, as damage of the newest image.
pub fn of_records(chain: &Chain, records: &Records) -> Result<()> {
    // What leads to processes that were left out leads nowhere: that is said of it, and it is not restored.
    let stands_alone = records.omitted.missing.is_empty();
    let whole = if stands_alone { references::check(records) } else { Ok(()) };
    whole.map_err(|what| damaged(chain, what))
}

fn damaged(chain: &Chain, what: String) -> Error {
    Error::Image(image::Error::damaged(chain.newest().path(), what))
}

/// What [`Store::verify_with`](crate::store::Store::verify_with) asks of each checkpoint.
pub fn judge(chain: &Chain) -> Option<image::Error> {
    match check(chain) {
        Ok(()) => None,
        Err(Error::Image(error)) => Some(error),
        Err(other) => Some(image::Error::damaged(chain.newest().path(), other.to_string())),
    }
}
