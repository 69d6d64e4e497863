//! What is known of the page tables of a process from before, in the hands of whoever looks at them next.

use crate::checkpoint::member::Member;
use crate::checkpoint::narrow::{Noted, Scope, Settled};
use crate::checkpoint::watch::Watch;

/// What is known of the page tables of a process at a moment at which it stands still.
#[derive(Debug)]
pub struct History {
    /// What the programs noted since the last such moment.
    pub noted: Option<Noted>,
    /// What the page tables must be asked about.
    pub scope: Scope,
    /// What the last look left.
    pub before: Settled,
}

impl History {
    /// Takes it from where it was. Should the look at the page tables never come, or fail halfway, then the next one asks about
    /// everything.
    pub fn take(member: &mut Member, watch: Option<&mut Watch>) -> Self {
        let noted = watch.and_then(|w| w.take_noted(member.pid));
        let scope = member.scope(noted.as_ref());
        Self { noted, scope, before: std::mem::take(&mut member.settled) }
    }
}
