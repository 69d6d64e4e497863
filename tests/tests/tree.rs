//! Process trees: lineage, sessions, groups, and what processes share with each other.

use cr_tests::{Pace, chain_and_back, full_and_back, guest_names};

/// A module for each part of a guest, with a full checkpoint and a chain; and one test that no part was forgotten.
macro_rules! parts {
    ($($guest:literal: $($test:ident = $part:literal)*;)*) => {
        $($(mod $test {
            #[test]
            fn full() {
                super::full_and_back($guest, &[$part], super::Pace::default());
            }

            #[test]
            fn chain() {
                super::chain_and_back($guest, &[$part], super::Pace::default());
            }
        })*)*

        #[test]
        fn every_part_has_its_tests() {
            for (guest, tested) in [$(($guest, &[$($part),*][..])),*] {
                assert_eq!(guest_names(guest), tested, "the parts of {guest}");
            }
        }
    };
}

parts! {
    "tree": deep = "deep" wide = "wide" waiting = "waiting" orphan = "orphan" subreaper = "subreaper" exec = "exec" forker = "forker";
    "tree_jobs": sessions = "sessions" zombies = "zombies" stopped = "stopped" dead_leader = "dead-leader" pdeathsig = "pdeathsig"
        exit_signal = "exit-signal" vfork = "vfork";
}
