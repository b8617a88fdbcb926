//! Objects that are named by their size, with content of their own.

use crate::client::Client;
use crate::data::Pattern;
use crate::server::Server;

pub fn name(size: usize) -> String {
    format!("object-{size}")
}

pub fn content(size: usize) -> Vec<u8> {
    Pattern::named(&name(size)).bytes(size)
}

/// Makes the bucket and one object of each size.
pub fn fill(server: &Server, bucket: &str, sizes: &[usize]) {
    let mut client = server.client();
    client.create_bucket(bucket).expect("an answer").expect(200);
    for &size in sizes {
        let put = client.put(bucket, &name(size), &content(size));
        put.expect("an answer").expect(200);
    }
}

/// Reads what [`fill`] made.
pub fn assert_readable(client: &mut Client, bucket: &str, sizes: &[usize]) {
    for &size in sizes {
        let got = client.get(bucket, &name(size)).expect("an answer");
        assert!(got.expect(200).body == content(size), "{size}");
    }
}
