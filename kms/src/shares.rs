//! Shares of the root key: any `threshold` of them bring it back, fewer tell nothing about it.
//!
//! Shamir's scheme over GF(2^8) with AES's polynomial, byte by byte: the key's byte is the constant term of a random
//! polynomial of degree `threshold - 1`, a share its value at the share's number. Arithmetic on secret bytes takes the same
//! time whatever they are. A share carries the random id of its set, so that shares of two splits are not mixed up, and a
//! checksum of itself, so that a mistyped one is told.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::error::{Environment, Error};
use crate::limits::SHARES_MAX;
use crate::random;
use crate::root::RootKey;
use crate::secret::Secret32;

const PREFIX: &str = "strongroom-share:v1:";
const SET: usize = 8;
const CHECK: usize = 4;
/// Set, threshold, number, value, checksum.
const BYTES: usize = SET + 1 + 1 + 32 + CHECK;
const PURPOSE_CHECK: &[u8] = b"strongroom root key share v1";

/// One share of a root key.
pub struct Share {
    set: [u8; SET],
    threshold: u8,
    /// Where the polynomials were evaluated: from 1 on.
    number: u8,
    value: Secret32,
}

impl Share {
    /// Splits a root key into so many shares, `threshold` of which bring it back.
    pub fn split(root: &RootKey, shares: u8, threshold: u8) -> Result<Vec<Share>, Error> {
        if threshold < 2 || threshold > shares || shares > SHARES_MAX {
            return Err(share(
                "a key is split into 2 to 32 shares, and 2 or more of them are needed",
            ));
        }
        // The key, and the coefficients of x, x², …, each for all 32 bytes.
        let coefficients: Vec<Secret32> = std::iter::once(root.secret().clone())
            .chain((1..threshold).map(|_| Secret32::random()))
            .collect();
        let set = random::array();
        Ok((1..=shares)
            .map(|number| Share {
                set,
                threshold,
                number,
                value: evaluate(&coefficients, number),
            })
            .collect())
    }

    /// Brings the root key back.
    pub fn join(shares: &[Share]) -> Result<RootKey, Error> {
        let first = shares.first().ok_or_else(|| share("none is given"))?;
        if shares
            .iter()
            .any(|s| s.set != first.set || s.threshold != first.threshold)
        {
            return Err(share("these are not all of one set"));
        }
        let needed = usize::from(first.threshold);
        let mut used: Vec<&Share> = Vec::with_capacity(needed);
        for one in shares {
            if used.len() < needed && used.iter().all(|other| other.number != one.number) {
                used.push(one);
            }
        }
        if used.len() < needed {
            return Err(share("there are fewer different ones than are needed"));
        }
        let mut root = Zeroizing::new([0; 32]);
        for one in &used {
            let weight = weight_at_zero(one.number, &used);
            for (byte, value) in root.iter_mut().zip(one.value.expose()) {
                *byte ^= multiply(*value, weight);
            }
        }
        Ok(RootKey::from_secret(Secret32::new(&root)))
    }

    /// Reads a share from its text.
    pub fn parse(text: &str) -> Result<Share, Error> {
        let bad = || share("this is not one (strongroom-share:v1:…), or it is mistyped");
        let text = text.trim().strip_prefix(PREFIX).ok_or_else(bad)?;
        let bytes = STANDARD
            .decode(text)
            .map(Zeroizing::new)
            .map_err(|_| bad())?;
        if bytes.len() != BYTES {
            return Err(bad());
        }
        let (bytes, check) = bytes.split_at(BYTES - CHECK);
        if checksum(bytes) != check {
            return Err(bad());
        }
        let (set, rest) = bytes.split_first_chunk().ok_or_else(bad)?;
        match rest {
            [threshold, number, value @ ..] if *threshold >= 2 && *number >= 1 => Ok(Share {
                set: *set,
                threshold: *threshold,
                number: *number,
                value: Secret32::from_slice(value).ok_or_else(bad)?,
            }),
            _ => Err(bad()),
        }
    }

    /// The share as a line of text, wiped when dropped.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(BYTES));
        bytes.extend_from_slice(&self.set);
        bytes.extend_from_slice(&[self.threshold, self.number]);
        bytes.extend_from_slice(self.value.expose());
        let check = checksum(&bytes);
        bytes.extend_from_slice(&check);
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + BYTES.div_ceil(3) * 4));
        text.push_str(PREFIX);
        STANDARD.encode_string(bytes.as_slice(), &mut text);
        text
    }

    /// How many shares of its set are needed.
    #[must_use]
    pub fn threshold(&self) -> u8 {
        self.threshold
    }

    /// Which share of its set it is.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }
}

fn share(problem: &'static str) -> Error {
    Environment::Share(problem).into()
}

fn checksum(bytes: &[u8]) -> [u8; CHECK] {
    let hash = Sha256::new()
        .chain_update(PURPOSE_CHECK)
        .chain_update(bytes)
        .finalize();
    *hash.first_chunk().expect("4 of 32")
}

/// The values of the polynomials at `x`, by Horner's rule.
fn evaluate(coefficients: &[Secret32], x: u8) -> Secret32 {
    let mut value = Zeroizing::new([0; 32]);
    for coefficient in coefficients.iter().rev() {
        for (byte, term) in value.iter_mut().zip(coefficient.expose()) {
            *byte = multiply(*byte, x) ^ term;
        }
    }
    Secret32::new(&value)
}

/// What the share of this number counts in the value at 0, by Lagrange's formula. Minus is plus in this field.
fn weight_at_zero(number: u8, used: &[&Share]) -> u8 {
    used.iter()
        .map(|other| other.number)
        .filter(|other| *other != number)
        .fold(1, |weight, other| {
            multiply(weight, multiply(other, invert(other ^ number)))
        })
}

/// The product in GF(2^8), without a branch or a table that a secret decides on.
fn multiply(a: u8, b: u8) -> u8 {
    let (mut a, mut product) = (a, 0);
    for bit in 0..8 {
        product ^= a & (b >> bit & 1).wrapping_neg();
        a = (a << 1) ^ (0x1b & (a >> 7).wrapping_neg());
    }
    product
}

/// The inverse: the 254th power.
fn invert(a: u8) -> u8 {
    let mut power = a;
    let mut inverse = 1;
    for _ in 0..7 {
        power = multiply(power, power);
        inverse = multiply(inverse, power);
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(outcome: Result<RootKey, Error>) -> String {
        outcome.err().expect("refused").to_string()
    }

    #[test]
    fn arithmetic_of_the_field() {
        // FIPS 197, 4.2 and 4.2.1.
        assert_eq!(multiply(0x57, 0x83), 0xc1);
        assert_eq!(multiply(0x57, 0x13), 0xfe);
        for a in 1..=255 {
            assert_eq!(multiply(a, invert(a)), 1, "{a}");
            assert_eq!(multiply(a, 1), a);
            assert_eq!(multiply(a, 0), 0);
        }
    }

    #[test]
    fn any_threshold_of_shares_brings_the_key_back_and_fewer_do_not() {
        let root = RootKey::generate();
        let shares = Share::split(&root, 5, 3).ok().unwrap();
        for a in 0..5 {
            for b in 0..5 {
                for c in 0..5 {
                    let chosen =
                        [a, b, c].map(|at| Share::parse(&shares[at].to_text()).ok().unwrap());
                    let joined = Share::join(&chosen);
                    match a != b && b != c && a != c {
                        true => assert!(*joined.ok().unwrap().to_base64() == *root.to_base64()),
                        false => assert!(error(joined).contains("fewer")),
                    }
                }
            }
        }
        assert_eq!(
            *Share::join(&shares).ok().unwrap().to_base64(),
            *root.to_base64()
        );
    }

    /// With one share less than is needed, every key is as likely as any other: for each there is a last share.
    #[test]
    fn fewer_shares_tell_nothing() {
        let root = RootKey::generate();
        let shares = Share::split(&root, 2, 2).ok().unwrap();
        let (x, y) = (shares[0].number, shares[0].value.expose()[0]);
        for key in 0..=255u8 {
            // The line through (0, key) and (x, y) has a value at the other share's number.
            let slope = multiply(key ^ y, invert(x));
            let other = multiply(slope, shares[1].number) ^ key;
            let at_zero = |n: u8, value: u8, m: u8| multiply(value, multiply(m, invert(m ^ n)));
            let joined = at_zero(x, y, shares[1].number) ^ at_zero(shares[1].number, other, x);
            assert_eq!(joined, key);
        }
    }

    #[test]
    fn what_is_no_share_or_of_another_set_is_told() {
        let root = RootKey::generate();
        let one = Share::split(&root, 3, 2).ok().unwrap();
        let two = Share::split(&root, 3, 2).ok().unwrap();
        let mixed = [&one[0], &two[1]].map(|s| Share::parse(&s.to_text()).ok().unwrap());
        assert!(error(Share::join(&mixed)).contains("one set"));
        assert!(error(Share::join(&[])).contains("none"));
        let text = one[0].to_text();
        for at in PREFIX.len()..text.len() {
            let mut mistyped = text.as_bytes().to_vec();
            mistyped[at] = if mistyped[at] == b'A' { b'B' } else { b'A' };
            let mistyped = String::from_utf8(mistyped).unwrap();
            assert!(Share::parse(&mistyped).is_err(), "{at}");
        }
        for (shares, threshold) in [(1, 1), (3, 1), (2, 3), (33, 2), (0, 0)] {
            assert!(
                Share::split(&root, shares, threshold).is_err(),
                "{shares} {threshold}"
            );
        }
    }

    proptest! {
        #[test]
        fn round_trip(shares in 2u8..=32, threshold in 2u8..=32, first: u8) {
            prop_assume!(threshold <= shares);
            let root = RootKey::generate();
            let mut all = Share::split(&root, shares, threshold).ok().unwrap();
            all.rotate_left(usize::from(first % shares));
            all.truncate(usize::from(threshold));
            prop_assert!(*Share::join(&all).ok().unwrap().to_base64() == *root.to_base64());
            all.pop();
            prop_assert!(Share::join(&all).is_err());
        }

        #[test]
        fn any_text_is_an_answer(text: String) {
            let _ = Share::parse(&text);
            let _ = Share::parse(&format!("{PREFIX}{text}"));
        }
    }
}
