//! Asks whoever runs a command for secrets: without an echo on a terminal, line by line where there is none.

use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use strongroom_kms::{RootKey, Share};
use zeroize::Zeroizing;

use crate::{limits, root_key};

/// Brings the root key: from where the surroundings say, else from people if they hold it. None where the process that
/// holds the store finds it by itself.
pub fn root_key(dirs: &[PathBuf]) -> Result<Option<RootKey>, String> {
    if let Some(root) = root_key::of_surroundings()? {
        return Ok(Some(root));
    }
    if root_key::path(dirs).exists() {
        return Ok(None);
    }
    if root_key::in_any(dirs, root_key::PASSPHRASE).exists() {
        return by_passphrase(dirs).map(Some);
    }
    if root_key::in_any(dirs, root_key::SHARES).exists() {
        return by_shares().map(Some);
    }
    Ok(None)
}

/// Asks for the passphrase.
pub fn by_passphrase(dirs: &[PathBuf]) -> Result<RootKey, String> {
    let path = root_key::in_any(dirs, root_key::PASSPHRASE);
    if !path.exists() {
        return Err(format!(
            "no passphrase was set up: there is no {} (`strongroom kms root-key passphrase` makes it)",
            path.display()
        ));
    }
    let passphrase = line("Passphrase: ")?;
    RootKey::load_by_passphrase(&path, &passphrase).map_err(|e| e.to_string())
}

/// Asks for shares until there are enough.
pub fn by_shares() -> Result<RootKey, String> {
    let mut shares: Vec<Share> = Vec::new();
    loop {
        let wanted = shares
            .first()
            .map_or(2, |first| usize::from(first.threshold()));
        if shares.len() >= wanted {
            return Share::join(&shares).map_err(|e| e.to_string());
        }
        let prompt = match shares.first() {
            None => "Share: ".to_owned(),
            Some(_) => format!("Share ({} of {wanted} are here): ", shares.len()),
        };
        let share = Share::parse(&line(&prompt)?).map_err(|e| e.to_string())?;
        if shares.iter().any(|held| held.number() == share.number()) {
            return Err(format!("share {} was given twice", share.number()));
        }
        shares.push(share);
    }
}

/// One line from standard input, wiped when dropped.
pub fn line(prompt: &str) -> Result<Zeroizing<String>, String> {
    let stdin = std::io::stdin();
    let _silence = match stdin.is_terminal() {
        true => {
            // Not on standard output, which may go to a file.
            eprint!("{prompt}");
            // A prompt that does not show is no reason not to ask.
            let _ = std::io::stderr().flush();
            Some(
                Silence::new()
                    .map_err(|e| format!("the terminal's echo cannot be turned off: {e}"))?,
            )
        }
        false => None,
    };
    // One byte after the other, so that no buffer keeps what was typed.
    let mut text = Zeroizing::new(Vec::with_capacity(limits::SECRET_LINE_BYTES_MAX));
    let mut byte = Zeroizing::new([0]);
    loop {
        let read = rustix::io::read(stdin.as_fd(), &mut *byte);
        match read.map_err(|e| format!("standard input: {e}"))? {
            0 if text.is_empty() => {
                return Err("standard input ended before it was answered".into());
            }
            0 => break,
            _ if byte[0] == b'\n' => break,
            _ if text.len() == limits::SECRET_LINE_BYTES_MAX => {
                return Err("the line is too long".into());
            }
            _ => text.push(byte[0]),
        }
    }
    let text = std::str::from_utf8(&text).map_err(|_| "the line is not UTF-8".to_owned())?;
    Ok(Zeroizing::new(text.trim_end_matches('\r').to_owned()))
}

/// A terminal without an echo, until it is dropped.
struct Silence(Termios);

impl Silence {
    fn new() -> rustix::io::Result<Self> {
        let before = tcgetattr(std::io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // There is nobody to tell if it fails.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
        eprintln!();
    }
}
