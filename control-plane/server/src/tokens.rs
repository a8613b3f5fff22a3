//! Bearer tokens: a file that says whose a token is, read again when it changes.
//!
//! Each line is `NAME SHA256`: a name like those in certificates, and the SHA-256 of the token in hexadecimal. The file
//! holds no token, so that reading it lets nobody in.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use culvert_runtime::files::FileWatcher;
use tokio::sync::watch;

/// How long the file must be left alone before it counts as written.
const QUIET: Duration = Duration::from_millis(200);
/// Tokens in one file.
const MAX_TOKENS: usize = 100_000;

/// By hash: how long a look-up takes says nothing about a token.
type ByHash = HashMap<Hash, Arc<str>>;

type Hash = [u8; SHA256_OUTPUT_LEN];

#[derive(Debug)]
pub(crate) struct Tokens {
    path: PathBuf,
    names: watch::Sender<Arc<ByHash>>,
}

/// A token that somebody gave, and that was known then.
#[derive(Debug)]
pub(crate) struct Given {
    hash: Hash,
    pub(crate) name: Arc<str>,
    names: watch::Receiver<Arc<ByHash>>,
}

impl Given {
    /// Returns when it is no longer known, or is another's.
    pub(crate) async fn revoked(mut self) {
        let Self { hash, name, names } = &mut self;
        let gone = names.wait_for(|names| names.get(hash) != Some(name)).await.is_ok();
        if !gone {
            // The process ends.
            std::future::pending().await
        }
    }
}

impl Tokens {
    /// # Errors
    /// The file cannot be read, or a line of it makes no sense.
    pub(crate) fn new(path: &Path) -> anyhow::Result<Self> {
        let names = watch::Sender::new(Arc::new(read(path)?));
        Ok(Self { path: path.to_owned(), names })
    }

    /// A token that is known, with whose it is.
    pub(crate) fn find(&self, token: &str) -> Option<Given> {
        let hash = Hash::try_from(digest(&SHA256, token.as_bytes()).as_ref()).ok()?;
        let names = self.names.subscribe();
        let name = names.borrow().get(&hash).cloned()?;
        Some(Given { hash, name, names })
    }

    /// Reads the file as it changes, for ever. What is wrong with it is said, and what was good stays.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut changes = FileWatcher::new().watch([self.path.clone()], QUIET);
        loop {
            changes.changed().await;
            match read(&self.path) {
                Ok(names) => {
                    tracing::info!(tokens = names.len(), "the tokens changed; streams of those that are gone end");
                    self.names.send_replace(Arc::new(names));
                }
                Err(error) => tracing::error!("the tokens changed and are refused, the former stay: {error:#}"),
            }
        }
    }
}

fn read(path: &Path) -> anyhow::Result<ByHash> {
    let text = std::fs::read_to_string(path).with_context(|| format!("--tokens: cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("--tokens {}", path.display()))
}

fn parse(text: &str) -> anyhow::Result<ByHash> {
    let mut names = ByHash::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = index + 1;
        let Some((name, hash)) = line.split_once(char::is_whitespace) else {
            bail!("line {number}: expected NAME and the token's SHA-256 in hexadecimal");
        };
        // Never the line itself: somebody may have written the token.
        let hash = unhex(hash.trim()).with_context(|| format!("line {number}: no SHA-256 of 64 hexadecimal digits"))?;
        ensure!(names.insert(hash, name.into()).is_none(), "line {number}: this token stands in the file already");
        ensure!(names.len() <= MAX_TOKENS, "more than {MAX_TOKENS} tokens");
    }
    Ok(names)
}

fn unhex(text: &str) -> Option<[u8; SHA256_OUTPUT_LEN]> {
    let digits: Option<Vec<u8>> = text.chars().map(|digit| u8::try_from(digit.to_digit(16)?).ok()).collect();
    let bytes: Vec<u8> = digits?.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    if text.len() == 2 * SHA256_OUTPUT_LEN { bytes.try_into().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_hash_alone() {
        // printf %s secret | sha256sum
        let text = "# nodes\n\nspiffe://t/n1 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n";
        let tokens = Tokens { path: PathBuf::new(), names: watch::Sender::new(Arc::new(parse(text).unwrap())) };
        assert_eq!(tokens.find("secret").map(|given| given.name).as_deref(), Some("spiffe://t/n1"));
        for wrong in ["", "Secret", "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"] {
            assert!(tokens.find(wrong).is_none(), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn a_token_is_taken_back_when_it_is_gone_or_is_anothers() {
        let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        for (text, expected) in
            [(String::new(), true), (format!("b {hash}\n"), true), (format!("# again\na {hash}\n"), false)]
        {
            let first = parse(&format!("a {hash}\n")).unwrap();
            let tokens = Tokens { path: PathBuf::new(), names: watch::Sender::new(Arc::new(first)) };
            let mut revoked = std::pin::pin!(tokens.find("secret").unwrap().revoked());
            assert!(futures_util::poll!(&mut revoked).is_pending(), "it is known");
            tokens.names.send_replace(Arc::new(parse(&text).unwrap()));
            assert_eq!(futures_util::poll!(&mut revoked).is_ready(), expected, "{text:?}");
        }
    }

    #[test]
    fn lines_that_make_no_sense_are_refused_without_being_shown() {
        let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        for (text, wanted) in [
            ("name".to_owned(), "line 1: expected NAME"),
            ("\nname secret".to_owned(), "line 2: no SHA-256"),
            (format!("name {hash}0"), "line 1: no SHA-256"),
            (format!("a {hash}\nb {hash}"), "line 2: this token stands"),
        ] {
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(wanted) && !error.contains("secret"), "{text:?}: {error}");
        }
    }
}
