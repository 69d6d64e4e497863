//! One image: the bytes as they are, or what one is made from.

use cr::image::Image;
use cr::object::KINDS;

use super::look_at;
use crate::forge::Parts;
use crate::keys;
use crate::scratch::Scratch;

/// The first eight bytes say which: if the first is 1, the others are the file.
pub fn run(input: &[u8]) -> bool {
    let (kind, rest) = input.split_at(input.len().min(8));
    let forged;
    let bytes = if kind.first() == Some(&1) {
        rest
    } else {
        forged = Parts::read(rest).forge().0;
        &forged
    };
    let scratch = Scratch::take();
    let path = scratch.file("image", bytes);
    // What is sealed does not open without a key, and what is not, not with one.
    let opened = [Image::open(&path, KINDS), Image::open_sealed(&path, KINDS, Some(keys::store_key()))];
    assert!(opened.iter().any(Result::is_err), "it opens with a key and without");
    let mut made_sense = false;
    for (opened, sealed) in opened.into_iter().zip([false, true]) {
        match opened {
            Ok(image) => {
                // Flags of the header, checked by `Image::open` against all that depends on them.
                assert_eq!((image.is_sealed(), image.signer().is_some()), (sealed, bytes[34] == 1));
                look_at(&image);
                made_sense = true;
            }
            Err(error) => assert_eq!(error.exit_code(), 122, "it is the image that is wrong: {error}"),
        }
    }
    made_sense
}
