//! Storage and cryptography of Strongroom.
