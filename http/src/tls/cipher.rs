//! TLS 1.3 records under AES-256-GCM, sealed and opened by the store's own kernels; all else of TLS is rustls' with ring.
//!
//! ring seals in place only, so each record would be copied first, and the copy of data that has left the caches costs more than
//! the cipher. Here a record is sealed from where the object's plaintext lies to where the socket takes it.

use std::sync::{Arc, LazyLock};

use rustls::Tls13CipherSuite;
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, MessageDecrypter, MessageEncrypter,
    Nonce, OutboundChunks, OutboundOpaqueMessage, OutboundPlainMessage, PrefixedPayload,
    Tls13AeadAlgorithm, UnsupportedOperationError, make_tls13_aad,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls::{
    CipherSuite, CipherSuiteCommon, ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion,
    SupportedCipherSuite,
};
use strongroom_engine::secret::Secret;
use strongroom_engine::simd::gcm::{Key, Message, TAG};

/// ring's provider with its TLS 1.3 suite of AES-256-GCM replaced, in the same order of preference.
pub fn provider() -> Arc<CryptoProvider> {
    static SUITE: LazyLock<Tls13CipherSuite> = LazyLock::new(|| {
        let theirs = ring::cipher_suite::TLS13_AES_256_GCM_SHA384.tls13();
        let theirs = theirs.expect("a suite of TLS 1.3");
        Tls13CipherSuite {
            common: CipherSuiteCommon {
                suite: theirs.common.suite,
                hash_provider: theirs.common.hash_provider,
                confidentiality_limit: theirs.common.confidentiality_limit,
            },
            hkdf_provider: theirs.hkdf_provider,
            aead_alg: &Aes256Gcm,
            quic: None,
        }
    });
    let mut provider = ring::default_provider();
    for suite in &mut provider.cipher_suites {
        if suite.suite() == CipherSuite::TLS13_AES_256_GCM_SHA384 {
            *suite = SupportedCipherSuite::Tls13(&SUITE);
        }
    }
    Arc::new(provider)
}

struct Aes256Gcm;

/// One direction of a connection.
struct Records {
    key: Key,
    iv: Iv,
}

impl Records {
    /// rustls erases its own copy of the key.
    fn new(key: &AeadKey, iv: Iv) -> Box<Self> {
        let secret = Secret::from_slice(key.as_ref()).expect("a key of key_len() bytes");
        Box::new(Self {
            key: Key::new(&secret),
            iv,
        })
    }
}

impl Tls13AeadAlgorithm for Aes256Gcm {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        Records::new(&key, iv)
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        Records::new(&key, iv)
    }

    fn key_len(&self) -> usize {
        Secret::LEN
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: Iv,
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        Ok(ConnectionTrafficSecrets::Aes256Gcm { key, iv })
    }
}

impl MessageEncrypter for Records {
    fn encrypt(
        &mut self,
        message: OutboundPlainMessage<'_>,
        sequence: u64,
    ) -> Result<OutboundOpaqueMessage, Error> {
        let len = message.payload.len();
        let sealed = self.encrypted_payload_len(len);
        let mut payload = PrefixedPayload::with_capacity(sealed);
        payload.extend(std::iter::repeat_n(&0, len + 1));
        let (data, kind) = payload.as_mut().split_at_mut(len);

        let mut record = self
            .key
            .begin(&Nonce::new(&self.iv, sequence).0, &make_tls13_aad(sealed));
        seal_chunks(&mut record, &self.key, &message.payload, data);
        record.seal(&self.key, &message.typ.to_array(), kind);
        payload.extend_from_slice(&record.finish(&self.key));
        // What the record says on the outside is fixed: RFC 8446, section 5.2.
        Ok(OutboundOpaqueMessage::new(
            ContentType::ApplicationData,
            ProtocolVersion::TLSv1_2,
            payload,
        ))
    }

    fn encrypted_payload_len(&self, len: usize) -> usize {
        len + 1 + TAG
    }
}

/// Seals what the chunks have between their cursors.
fn seal_chunks(record: &mut Message, key: &Key, chunks: &OutboundChunks<'_>, mut out: &mut [u8]) {
    let (chunks, mut skip) = match chunks {
        OutboundChunks::Single(chunk) => (std::slice::from_ref(chunk), 0),
        OutboundChunks::Multiple { chunks, start, .. } => (*chunks, *start),
    };
    for chunk in chunks {
        let from = skip.min(chunk.len());
        skip -= from;
        let len = (chunk.len() - from).min(out.len());
        let (now, later) = out.split_at_mut(len);
        record.seal(key, &chunk[from..from + len], now);
        out = later;
    }
}

impl MessageDecrypter for Records {
    fn decrypt<'a>(
        &mut self,
        mut message: InboundOpaqueMessage<'a>,
        sequence: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let payload = &mut message.payload;
        let aad = make_tls13_aad(payload.len());
        let (data, tag) = payload
            .split_last_chunk_mut::<TAG>()
            .ok_or(Error::DecryptError)?;
        let nonce = Nonce::new(&self.iv, sequence).0;
        let len = data.len();
        self.key
            .open_in_place(&nonce, &aad, data, tag)
            .map_err(|_| Error::DecryptError)?;
        payload.truncate(len);
        message.into_tls13_unpadded_message()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::{IoSlice, Read, Write};

    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

    /// A server with our kernels and a client with ring, after their handshake.
    fn pair() -> (ServerConnection, ClientConnection) {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let private = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], private)
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        let name = "localhost".try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        server.set_buffer_limit(None);
        client.set_buffer_limit(None);
        while server.is_handshaking() || client.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut &wire[..]).unwrap();
            server.process_new_packets().unwrap();
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut &wire[..]).unwrap();
            client.process_new_packets().unwrap();
        }
        let suite = server.negotiated_cipher_suite().unwrap();
        assert_eq!(suite.suite(), CipherSuite::TLS13_AES_256_GCM_SHA384);
        let SupportedCipherSuite::Tls13(suite) = suite else {
            panic!("TLS 1.3");
        };
        assert!(suite.quic.is_none(), "the suite is ours");
        (server, client)
    }

    pub(crate) fn bytes(len: usize) -> Vec<u8> {
        (0..len as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect()
    }

    macro_rules! carry {
        ($from:expr, $to:expr, $expected:expr) => {{
            let mut wire = Vec::new();
            while $from.wants_write() {
                $from.write_tls(&mut wire).unwrap();
            }
            let (mut wire, mut seen) = (&wire[..], Vec::new());
            while !wire.is_empty() {
                $to.read_tls(&mut wire).unwrap();
                let state = $to.process_new_packets().unwrap();
                let at = seen.len();
                seen.resize(at + state.plaintext_bytes_to_read(), 0);
                $to.reader().read_exact(&mut seen[at..]).unwrap();
            }
            assert!(seen == $expected, "{} bytes", seen.len());
        }};
    }

    #[test]
    fn records_are_those_of_ring() {
        let (mut server, mut client) = pair();
        for len in [1, 15, 16, 17, 4096, 16_383, 16_384, 16_385, 300_000] {
            let data = bytes(len);
            server.writer().write_all(&data).unwrap();
            carry!(server, client, data);
            client.writer().write_all(&data).unwrap();
            carry!(client, server, data);
        }
        // Records that begin and end within the slices of one write.
        let slices: Vec<_> = [3, 0, 16_380, 1, 40_000, 7, 16_384, 100].map(bytes).into();
        let all = slices.concat();
        let slices: Vec<_> = slices.iter().map(|s| IoSlice::new(s)).collect();
        assert_eq!(server.writer().write_vectored(&slices).unwrap(), all.len());
        carry!(server, client, all);
        server.refresh_traffic_keys().unwrap();
        server.writer().write_all(&all).unwrap();
        carry!(server, client, all);
    }

    #[test]
    fn a_changed_record_is_refused() {
        for (at, what) in [(5, "data"), (1000 + 5, "the kind"), (1000 + 6, "the tag")] {
            let (mut server, mut client) = pair();
            client.writer().write_all(&bytes(1000)).unwrap();
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            wire[at] ^= 1;
            server.read_tls(&mut &wire[..]).unwrap();
            let refused = server.process_new_packets();
            assert_eq!(refused.unwrap_err(), Error::DecryptError, "{what}");
        }
        // Too short for a tag.
        let (mut server, _) = pair();
        server
            .read_tls(&mut &[23, 3, 3, 0, 15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..])
            .unwrap();
        let refused = server.process_new_packets();
        assert_eq!(refused.unwrap_err(), Error::DecryptError);
    }
}
