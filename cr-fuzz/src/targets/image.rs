//! One image: the bytes as they are, or what one is made from.

use cr::image::Image;
use cr::object::KINDS;

use super::look_at;
use crate::forge::Parts;
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
    match Image::open(&scratch.file("image", bytes), KINDS) {
        Ok(image) => {
            look_at(&image);
            true
        }
        Err(error) => {
            assert_eq!(error.exit_code(), 122, "it is the image that is wrong: {error}");
            false
        }
    }
}
