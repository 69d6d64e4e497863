//! What the end-to-end tests share: building guests, running `cr`, waiting for a guest to say that it is ready.
