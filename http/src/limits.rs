//! Every bound of the edge in one place; relations between them are checked by the compiler.
//!
//! A client can make the server hold at most what stands here: per connection, per request, and
//! per shard. Sizes are bytes unless the name says otherwise.

use std::time::Duration;

/// A request line and its headers.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Header lines of one request.
pub const HEADERS_MAX: usize = 128;
/// A request's target. S3 keys are at most 1,024 bytes, three times as long when escaped; the rest
/// is room for a presigned query with a session token.
pub const URI_BYTES_MAX: usize = 16 * 1024;
/// Query parameters of one request.
pub const QUERY_PARAMETERS_MAX: usize = 64;
/// What hyper buffers per HTTP/1.1 connection, and so the largest body frame.
pub const READ_BUFFER_BYTES: usize = 256 * 1024;
/// A request body that must be gathered before it is understood: XML.
pub const XML_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Extra room for the framing of a gathered aws-chunked body.
pub const XML_FRAMING_BYTES_MAX: usize = 64 * 1024;

/// HTTP/2 flow control: what one stream, and one connection, may have in flight towards us.
pub const H2_STREAM_WINDOW: u32 = 512 * 1024;
/// See [`H2_STREAM_WINDOW`].
pub const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Requests at once on one HTTP/2 connection.
pub const H2_STREAMS_MAX: u32 = 64;
/// What an HTTP/2 stream may hold of a response that the peer does not read.
pub const H2_SEND_BUFFER: usize = 256 * 1024;

/// Connections one shard serves at once; more wait in the listen queue.
pub const CONNECTIONS_PER_SHARD_MAX: usize = 16_384;
/// A port in use is asked for again for so long: the kernel takes down the rings of a server that
/// ended after the process is gone.
pub const PORT_PATIENCE: Duration = Duration::from_secs(5);
/// A data directory in use is asked for again for so long: a command that works on a store without a server holds it a moment.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Connections the kernel keeps for a shard that is busy.
pub const LISTEN_BACKLOG: i32 = 1024;
/// Buffers handed to one vectored write (the kernel takes no more than 1,024).
pub const WRITE_VECTOR_MAX: usize = 64;
/// Sealed bytes taken from the kernel at once. A message of a handshake, which may have 64 KiB, is put together in as much.
pub const TLS_READ_BYTES: usize = 128 * 1024;
/// Buffers of that size that a shard keeps for the next connection that has something to read.
pub const TLS_READ_BUFFERS_KEPT: usize = 8;
/// What a handshake has to say at once: above all the server's certificates.
pub const TLS_FLIGHT_BYTES_MAX: usize = 128 * 1024;
/// Records that may come without data (key updates, say), and the bytes of data that earn another one.
pub const TLS_IDLE_RECORDS_MAX: usize = 32;
/// See [`TLS_IDLE_RECORDS_MAX`].
pub const TLS_IDLE_RECORD_COST: usize = 64 * 1024;
/// The socket is asked for more so often before others get a turn.
pub const TLS_FILLS_MAX: usize = 4;
/// Records sealed ahead of the socket.
pub const TLS_BUFFER_BYTES: usize = 256 * 1024;

/// A TLS handshake must be over by then.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A request's headers must be complete by then, counted from the end of the request before: this
/// is also how long an idle connection is kept.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// A peer that takes not one byte of a response for so long is gone.
pub const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// A peer that sends not one byte of a body we wait for is gone.
pub const BODY_STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// HTTP/2 peers are pinged so often, and given so long to answer.
pub const H2_PING_INTERVAL: Duration = Duration::from_secs(30);
/// See [`H2_PING_INTERVAL`].
pub const H2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// After accepting failed (out of descriptors, say) the next try waits so long.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is read and dropped of a body whose request already failed, so that the client sees the
/// status and not a reset.
pub const DISCARD_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// See [`DISCARD_BYTES_MAX`].
pub const DISCARD_TIMEOUT: Duration = Duration::from_secs(20);
/// The same after our side of the connection is shut.
pub const LINGER_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// See [`LINGER_BYTES_MAX`].
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// The line that opens an aws-chunked chunk: sixteen hex digits, a signature, and some slack.
pub const CHUNK_HEADER_BYTES_MAX: usize = 1024;
/// Only the last chunk of an aws-chunked body may be smaller.
pub const CHUNK_BYTES_MIN: u64 = 8 * 1024;
/// All trailers of an aws-chunked body.
pub const TRAILER_BYTES_MAX: usize = 16 * 1024;
/// Trailers of an aws-chunked body.
pub const TRAILERS_MAX: usize = 16;

/// Everything in front of a form's file.
pub const FORM_FIELDS_BYTES_MAX: usize = 64 * 1024;
/// Fields of a form.
pub const FORM_FIELDS_MAX: usize = 128;
/// What follows a form's file, with the boundary that ends it.
pub const FORM_AFTER_BYTES_MAX: u64 = strongroom_engine::END_SLACK_BYTES;
/// A form's file up to this size is gathered, so that its length is known whatever follows it.
pub const FORM_GATHERED_BYTES_MAX: usize = 256 * 1024;

/// What an upload may hold of its frames until they are hashed, but for the frame that reaches it. At its end that much is left to
/// be hashed at worst, which takes 3 ms if there is no other to share with.
pub const MD5_STREAM_BYTES: usize = 2 * 1024 * 1024;
/// The same in frames, because a small frame may keep a whole read buffer from being used again.
pub const MD5_STREAM_FRAMES: usize = 128;
/// What all uploads of a shard may hold of their frames until they are hashed.
pub const MD5_CORE_BYTES: usize = 8 * 1024 * 1024;
/// See [`MD5_STREAM_FRAMES`].
pub const MD5_CORE_FRAMES: usize = 512;
/// Hashed in one go in each lane, which takes half a millisecond.
pub const MD5_SLICE_BYTES: usize = 256 * 1024;

/// Certificate files are looked at so often.
pub const CERTIFICATE_POLL: Duration = Duration::from_secs(3);

/// Connections of one core to one KES server; requests that find none free wait for one.
pub const KES_CONNECTIONS_MAX: usize = 16;
/// A connection to KES is used again within this time; KES itself keeps idle ones for 90 s.
pub const KES_IDLE_TIME: Duration = Duration::from_secs(30);
/// One of several addresses of a KES server has so long to take a connection.
pub const KES_ADDRESS_PATIENCE: Duration = Duration::from_secs(1);
/// What is buffered of an answer's head, or of a piece of its body.
pub const KES_BUFFER_BYTES: usize = 64 * 1024;
/// Room for an answer of unknown length: a data key and its ciphertext have some 200 bytes.
pub const KES_ANSWER_BYTES_USUAL: usize = 1024;
/// KES is asked so often whether it answers.
pub const KES_PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// Memory that each shard registers with its ring; all shards together must fit the limit of locked
/// memory, which is 8 MiB on many hosts.
pub const RING_MEMORY_BYTES: usize = 512 * 1024;
/// One command on the admin socket, as a line.
pub const ADMIN_LINE_BYTES_MAX: usize = 64 * 1024;
/// Its answer: a list of all keys there can be.
pub const ADMIN_ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// A command's line must be there by then, and its answer taken.
pub const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Commands at once on the admin socket; further ones are turned away.
pub const ADMIN_CONNECTIONS_MAX: usize = 16;
/// What waits for a client looks so often whether its key still stands.
pub const KEY_CHECK: Duration = Duration::from_millis(500);
/// What still uses a store that is being closed has so long to let go, and is looked at so often.
pub const CLOSE_PATIENCE: Duration = Duration::from_secs(10);
/// See [`CLOSE_PATIENCE`].
pub const CLOSE_LOOK: Duration = Duration::from_millis(5);
/// A locked store is tried to be opened so often.
pub const LOCKED_LOOK: Duration = Duration::from_secs(1);
/// Nothing can lock a store whose key stands under the root key.
pub const OPEN_LOOK: Duration = Duration::from_secs(3600);
/// A command that takes a key away, or brings one, waits so long until the store is locked or open.
pub const SETTLE_PATIENCE: Duration = Duration::from_secs(60);
/// Keys whose waiting period is over are looked for so often.
pub const DUE_KEYS_POLL: Duration = Duration::from_secs(1);
/// The same after they could not be destroyed.
pub const DUE_KEYS_PAUSE: Duration = Duration::from_secs(60);
/// How long a key call waits for a key service elsewhere.
pub const KMS_API_TIMEOUT: Duration = Duration::from_secs(5);
/// Logs that clients of the key server follow are looked at so often.
pub const LOG_POLL: Duration = Duration::from_millis(250);
/// How long requests under way may take to finish when the key server stops.
pub const KEY_SERVER_DRAIN: Duration = Duration::from_secs(1);
/// The key server's certificate files are looked at so often.
pub const KEY_SERVER_CERTIFICATE_POLL: Duration = Duration::from_secs(60);
/// A passphrase or a share, as a line.
pub const SECRET_LINE_BYTES_MAX: usize = 4 * 1024;
/// A command waits so long for a server that is starting.
pub const ADMIN_START_PATIENCE: Duration = Duration::from_secs(120);
/// A certificate or an API key on standard input.
pub const IDENTITY_BYTES_MAX: usize = 64 * 1024;
/// Multipart uploads that nobody completes are looked for so often.
pub const STALE_UPLOADS_POLL: Duration = Duration::from_secs(3600);

/// Records that a re-wrap hands to a shard at once, and how many such batches a shard may have.
pub const REWRAP_BATCH: usize = 64;
/// See [`REWRAP_BATCH`].
pub const REWRAP_BATCHES_PER_SHARD: usize = 2;
/// Of a batch, records that are re-wrapped at the same time.
pub const REWRAPS_AT_ONCE: usize = 16;
/// Failures of a re-wrap that are remembered.
pub const REWRAP_FAILURES_MAX: usize = 16;
/// How often a command that takes long tells of its progress.
pub const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// How often erasing old wrappings from the disk is tried while listings are in the way.
pub const ERASURE_TRIES: u32 = 5;

/// Threads of a shard for what may block: listings, reserving disk space.
pub const HELPER_THREADS: usize = 2;

const _: () = {
    assert!(URI_BYTES_MAX < HEADER_BYTES_MAX);
    assert!(URI_BYTES_MAX < u16::MAX as usize);
    assert!(HEADER_BYTES_MAX < READ_BUFFER_BYTES);
    assert!(H2_STREAM_WINDOW <= H2_CONNECTION_WINDOW);
    assert!(WRITE_VECTOR_MAX <= 1024);
    assert!(CHUNK_HEADER_BYTES_MAX > 16 + 64 + 32);
    assert!(TRAILER_BYTES_MAX > CHUNK_HEADER_BYTES_MAX);
    assert!(XML_FRAMING_BYTES_MAX > TRAILER_BYTES_MAX + CHUNK_HEADER_BYTES_MAX);
    assert!(MD5_SLICE_BYTES <= MD5_STREAM_BYTES);
    assert!(MD5_STREAM_BYTES < MD5_CORE_BYTES);
    assert!(MD5_STREAM_FRAMES < MD5_CORE_FRAMES);
    assert!(LINGER_BYTES_MAX <= DISCARD_BYTES_MAX);
    // hyper takes no less.
    assert!(KES_BUFFER_BYTES >= 8192);
    // A service that is back is noticed within 10 s.
    assert!(KES_PROBE_INTERVAL.as_secs() < 10);
};

/// How often a GET looks an object up that is replaced before it can be read.
pub const READ_TRIES: usize = 3;
