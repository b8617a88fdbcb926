//! Listening sockets: one per shard on the same port, and never on a port in use.
//!
//! With SO_REUSEPORT any process of the same user may join a port, so a second server would take
//! half the connections in silence. A probe without that option asks first: binding *and
//! listening* fails if anyone listens already. SO_REUSEADDR lets a restart pass connections that
//! linger in TIME_WAIT.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{FromRawFd, IntoRawFd};

use socket2::{Domain, Protocol, Socket, Type};

use crate::limits::LISTEN_BACKLOG;

/// Binds `address` once for each shard. Port 0 picks a free port, the same for all.
pub fn bind(address: SocketAddr, shards: usize) -> io::Result<Vec<TcpListener>> {
    let probe = open(address, false)?;
    let address = probe
        .local_addr()?
        .as_socket()
        .ok_or_else(|| io::Error::other("the listener has no address"))?;
    drop(probe);
    (0..shards)
        .map(|_| open(address, true).map(TcpListener::from))
        .collect()
}

/// Hands a listener to the executor of this thread.
#[expect(unsafe_code, reason = "glommio takes listeners by descriptor only")]
pub(super) fn adopt(listener: TcpListener) -> glommio::net::TcpListener {
    // SAFETY: `into_raw_fd` gives up the only owner of a listening socket, and glommio's listener
    // becomes the next one.
    unsafe { glommio::net::TcpListener::from_raw_fd(listener.into_raw_fd()) }
}

fn open(address: SocketAddr, share: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    fn any_port() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn shards_share_one_port() {
        let listeners = bind(any_port(), 3).unwrap();
        let port = listeners[0].local_addr().unwrap().port();
        assert_ne!(port, 0);
        for listener in &listeners {
            assert_eq!(listener.local_addr().unwrap().port(), port);
        }
    }

    #[test]
    fn a_second_server_is_refused() {
        let first = bind(any_port(), 2).unwrap();
        let address = first[0].local_addr().unwrap();
        let error = bind(address, 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_restart_right_after_serving_is_not() {
        let listeners = bind(any_port(), 2).unwrap();
        let address = listeners[0].local_addr().unwrap();
        for listener in &listeners {
            listener.set_nonblocking(true).unwrap();
        }
        for _ in 0..8 {
            let mut client = TcpStream::connect(address).unwrap();
            client.write_all(b"x").unwrap();
            let mut served = loop {
                if let Some((stream, _)) = listeners.iter().find_map(|l| l.accept().ok()) {
                    break stream;
                }
            };
            served.set_nonblocking(false).unwrap();
            let mut byte = [0];
            served.read_exact(&mut byte).unwrap();
            // The server closes first: its end goes to TIME_WAIT.
            drop(served);
            assert_eq!(client.read(&mut byte).unwrap(), 0);
        }
        drop(listeners);
        let again = bind(address, 2).unwrap();
        assert_eq!(again[1].local_addr().unwrap(), address);
    }
}
