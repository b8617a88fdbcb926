//! The two things KES looks at in a client certificate: its public key, and whether it is a CA's.
//!
//! A walk over the DER structure by RFC 5280, section 4.1. Signatures, dates and names are not looked at:
//! that is the TLS library's part.

const SEQUENCE: u8 = 0x30;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const BOOLEAN: u8 = 0x01;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// 2.5.29.19
const BASIC_CONSTRAINTS: [u8; 3] = [0x55, 0x1d, 0x13];

pub(crate) struct Certificate<'a> {
    /// The `SubjectPublicKeyInfo`, its own tag and length included.
    pub(crate) spki: &'a [u8],
    pub(crate) is_ca: bool,
}

/// Reads a certificate in DER; `None` when it is none.
pub(crate) fn read(der: &[u8]) -> Option<Certificate<'_>> {
    let mut outer = der;
    let mut certificate = element(&mut outer, SEQUENCE)?.content;
    let mut tbs = element(&mut certificate, SEQUENCE)?.content;
    if tbs.first() == Some(&VERSION) {
        next(&mut tbs)?;
    }
    // Serial number, signature algorithm, issuer, validity, subject.
    for _ in 0..5 {
        next(&mut tbs)?;
    }
    let spki = element(&mut tbs, SEQUENCE)?.whole;
    let mut is_ca = false;
    while !tbs.is_empty() {
        let field = next(&mut tbs)?;
        if field.tag == EXTENSIONS {
            is_ca = has_ca_flag(field.content)?;
        }
    }
    Some(Certificate { spki, is_ca })
}

fn has_ca_flag(mut wrapper: &[u8]) -> Option<bool> {
    let mut extensions = element(&mut wrapper, SEQUENCE)?.content;
    while !extensions.is_empty() {
        let mut extension = element(&mut extensions, SEQUENCE)?.content;
        if element(&mut extension, OBJECT_ID)?.content != BASIC_CONSTRAINTS {
            continue;
        }
        if extension.first() == Some(&BOOLEAN) {
            next(&mut extension)?;
        }
        let mut value = element(&mut extension, OCTET_STRING)?.content;
        let mut constraints = element(&mut value, SEQUENCE)?.content;
        // The flag is absent when false.
        return Some(
            constraints.first() == Some(&BOOLEAN)
                && next(&mut constraints)?.content.iter().any(|b| *b != 0),
        );
    }
    Some(false)
}

struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    whole: &'a [u8],
}

fn element<'a>(rest: &mut &'a [u8], tag: u8) -> Option<Element<'a>> {
    next(rest).filter(|element| element.tag == tag)
}

fn next<'a>(rest: &mut &'a [u8]) -> Option<Element<'a>> {
    let (&tag, after_tag) = rest.split_first()?;
    let (&first, mut body) = after_tag.split_first()?;
    let len = match first {
        0..=0x7f => usize::from(first),
        0x81..=0x83 => {
            let (bytes, after) = body.split_at_checked(usize::from(first & 0x7f))?;
            body = after;
            bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b))
        }
        _ => return None,
    };
    let (content, after) = body.split_at_checked(len)?;
    let whole = &rest[..rest.len() - after.len()];
    *rest = after;
    Some(Element {
        tag,
        content,
        whole,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, PublicKeyData as _};

    fn made(ca: IsCa) -> (Vec<u8>, Vec<u8>) {
        let pair = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["kes.example".to_owned()]).unwrap();
        params.is_ca = ca;
        let certificate = params.self_signed(&pair).unwrap();
        (certificate.der().to_vec(), pair.subject_public_key_info())
    }

    #[test]
    fn public_key_and_ca_flag() {
        for (ca, want) in [
            (IsCa::NoCa, false),
            (IsCa::ExplicitNoCa, false),
            (IsCa::Ca(BasicConstraints::Unconstrained), true),
            (IsCa::Ca(BasicConstraints::Constrained(0)), true),
        ] {
            let (der, spki) = made(ca);
            let read = read(&der).unwrap();
            assert_eq!(read.spki, spki);
            assert_eq!(read.is_ca, want);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer(bytes: Vec<u8>, at: prop::sample::Index, value: u8) {
            let _ = read(&bytes);
            let (mut der, _) = made(IsCa::NoCa);
            let at = at.index(der.len());
            let _ = read(&der[..at]);
            der[at] = value;
            let _ = read(&der);
        }
    }
}
