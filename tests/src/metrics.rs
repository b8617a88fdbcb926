//! What a server says of itself at `/metrics`, which is open on loopback.

use std::io;

use crate::server::Server;
use crate::wire::Connection;

/// The value of a metric without labels; none where the page has none of this name.
pub fn value(server: &Server, name: &str) -> io::Result<Option<u64>> {
    let endpoint = server.endpoint();
    let mut connection = Connection::open(endpoint.address, endpoint.tls)?;
    let request = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    connection.send(request, &[])?;
    let head = connection.read_head()?;
    if head.status != 200 {
        return Err(io::Error::other(format!("status {}", head.status)));
    }
    let mut page = Vec::new();
    connection.read_body("GET", &head, |piece| page.extend_from_slice(piece))?;
    let page = String::from_utf8_lossy(&page);
    let mut lines = page.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.map(|value| value.trim().parse().map_err(io::Error::other));
    value.transpose()
}
