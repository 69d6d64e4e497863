//! What the eBPF programs and the controller share: event records and map keys.
#![no_std]
