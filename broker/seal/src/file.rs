use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use aws_lc_rs::{constant_time, digest, hmac};

use crate::{
    KekId, KeyProvider, SealError, SecretKey, TAG_LEN, WrappedKey,
    cipher::{Cipher, NONCE_LEN},
    key::random,
};

const FORMAT: u16 = 1;
const SALT_LEN: usize = 16;
const FIXED_LEN: usize = 8 + 2 + 2 + 2;
const CHECKSUM_LEN: usize = 8;
const MAC_LEN: usize = 32;
const ROOT_CONTEXT: &[u8] = b"palisade file root v1";
const WHAT: &str = "file header";
/// Roots kept after unwrapping. There is one for each KEK and start of the process that wrote files.
const CACHED_ROOTS: usize = 1024;

/// Longest file header in bytes: reading this much of a file is enough to open it.
pub const HEADER_LIMIT: usize =
    FIXED_LEN + WrappedKey::ENCODED_LIMIT + SALT_LEN + CHECKSUM_LEN + MAC_LEN;

/// What a file is: the eight bytes it begins with, e.g. `*b"PALIWAL1"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileKind(pub [u8; 8]);

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

/// Makes and opens the keys of files.
///
/// A root key is wrapped by the provider once and then used for many files, each of which derives its own key with a
/// fresh salt. So the provider is asked at start and after a change of the current KEK, and new files can be begun
/// while it is away. The wrapped root stands in every file's header: each file can be read with the KEK alone.
pub struct FileKeys {
    provider: Arc<dyn KeyProvider>,
    roots: Mutex<Roots>,
}

#[derive(Default)]
struct Roots {
    current: Option<(KekId, Arc<Root>)>,
    opened: Vec<Arc<Root>>,
}

struct Root {
    key: SecretKey,
    wrapped: Vec<u8>,
}

impl FileKeys {
    /// Keys under `provider`; nothing is asked of it yet.
    #[must_use]
    pub fn new(provider: Arc<dyn KeyProvider>) -> Self {
        Self {
            provider,
            roots: Mutex::default(),
        }
    }

    /// A fresh key for a new file, and the header that the file must begin with. `context` is bound to the file and
    /// must be given again to open it: what the file belongs to, e.g. its number or its partition.
    ///
    /// When the provider fails to wrap under a new current KEK and there is a root from before, that one is used.
    ///
    /// # Errors
    /// What the provider reports when there is no root yet.
    pub fn create(&self, kind: FileKind, context: &[u8]) -> Result<(FileKey, Vec<u8>), SealError> {
        let root = self.root()?;
        Self::header(&root, kind, random()?, context)
    }

    /// The KEK that files are wrapped under now.
    #[must_use]
    pub fn current_kek(&self) -> KekId {
        self.provider.current()
    }

    /// The header that a file should begin with from now on, when its root is wrapped under another KEK than the current one; `None` when it is not. Root, salt
    /// and key of the file stay, and with them all that was written to it. It is as long as the old header when the ids of both KEKs are equally long.
    ///
    /// # Errors
    /// As [`FileKeys::open`]; what the provider reports about the new KEK.
    pub fn rewrap(
        &self,
        kind: FileKind,
        context: &[u8],
        header: &[u8],
    ) -> Result<Option<Vec<u8>>, SealError> {
        if Self::kek_of(kind, header)? == self.provider.current() {
            return Ok(None);
        }
        // Whether it is this file's header, before another is made of it.
        self.open(kind, context, header)?;
        let parsed = ParsedHeader::parse(kind, header)?;
        let old = self.opened(parsed.wrapped)?;
        let root = self.rewrapped(&old)?;
        Self::header(&root, kind, parsed.salt, context).map(|(_, header)| Some(header))
    }

    /// The same root under the current KEK. Files of one root are many, so it is wrapped once.
    fn rewrapped(&self, root: &Root) -> Result<Arc<Root>, SealError> {
        let current = self.provider.current();
        let mut roots = self.roots.lock().unwrap_or_else(PoisonError::into_inner);
        let known = roots.opened.iter().find(|other| {
            other.key.as_bytes() == root.key.as_bytes()
                && WrappedKey::decode(&other.wrapped).is_ok_and(|wrapped| wrapped.kek == current)
        });
        if let Some(known) = known {
            return Ok(Arc::clone(known));
        }
        let wrapped = self.provider.wrap(&root.key, ROOT_CONTEXT)?;
        let again = Arc::new(Root {
            key: root.key.clone(),
            wrapped: wrapped.encode(),
        });
        remember(&mut roots.opened, &again);
        Ok(again)
    }

    fn header(
        root: &Root,
        kind: FileKind,
        salt: [u8; SALT_LEN],
        context: &[u8],
    ) -> Result<(FileKey, Vec<u8>), SealError> {
        let (key, mac_key) = FileKey::derive(&root.key, kind, &salt, context)?;
        let length = FIXED_LEN + root.wrapped.len() + SALT_LEN + CHECKSUM_LEN + MAC_LEN;
        let too_long = || SealError::malformed(WHAT, "the wrapped key is too long");
        let mut header = Vec::with_capacity(length);
        header.extend_from_slice(&kind.0);
        header.extend_from_slice(&FORMAT.to_be_bytes());
        header.extend_from_slice(&u16::try_from(length).map_err(|_| too_long())?.to_be_bytes());
        header.extend_from_slice(
            &u16::try_from(root.wrapped.len())
                .map_err(|_| too_long())?
                .to_be_bytes(),
        );
        header.extend_from_slice(&root.wrapped);
        header.extend_from_slice(&salt);
        header.extend_from_slice(&checksum(&header));
        header.extend_from_slice(hmac::sign(&mac_key, &header).as_ref());
        Ok((key, header))
    }

    /// The key of the file that begins with `header` (which may be longer than the header), and the header's length.
    ///
    /// # Errors
    /// [`SealError::Malformed`] when this is not a header of that kind or is damaged, [`SealError::NotAuthentic`]
    /// when it belongs to another `context`, and what the provider reports about the key.
    pub fn open(
        &self,
        kind: FileKind,
        context: &[u8],
        header: &[u8],
    ) -> Result<(FileKey, usize), SealError> {
        let parsed = ParsedHeader::parse(kind, header)?;
        let root = self.opened(parsed.wrapped)?;
        let (key, mac_key) = FileKey::derive(&root.key, kind, &parsed.salt, context)?;
        hmac::verify(&mac_key, parsed.authenticated, parsed.mac)
            .map_err(|_| SealError::NotAuthentic { what: WHAT })?;
        Ok((key, parsed.length))
    }

    /// The id of the KEK that a file's header names, without needing that key: for reports on rotation.
    ///
    /// # Errors
    /// [`SealError::Malformed`].
    pub fn kek_of(kind: FileKind, header: &[u8]) -> Result<KekId, SealError> {
        let parsed = ParsedHeader::parse(kind, header)?;
        WrappedKey::decode(parsed.wrapped).map(|wrapped| wrapped.kek)
    }

    fn root(&self) -> Result<Arc<Root>, SealError> {
        let wanted = self.provider.current();
        let mut roots = self.roots.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = match &roots.current {
            Some((kek, root)) if *kek == wanted => return Ok(Arc::clone(root)),
            Some((_, root)) => Some(Arc::clone(root)),
            None => None,
        };
        let key = SecretKey::generate()?;
        match (self.provider.wrap(&key, ROOT_CONTEXT), previous) {
            (Ok(wrapped), _) => {
                let root = Arc::new(Root {
                    key,
                    wrapped: wrapped.encode(),
                });
                roots.current = Some((wrapped.kek, Arc::clone(&root)));
                remember(&mut roots.opened, &root);
                Ok(root)
            }
            (Err(_), Some(root)) => Ok(root),
            (Err(error), None) => Err(error),
        }
    }

    fn opened(&self, wrapped: &[u8]) -> Result<Arc<Root>, SealError> {
        let mut roots = self.roots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(root) = roots.opened.iter().find(|root| root.wrapped == wrapped) {
            return Ok(Arc::clone(root));
        }
        let key = self
            .provider
            .unwrap(&WrappedKey::decode(wrapped)?, ROOT_CONTEXT)?;
        let root = Arc::new(Root {
            key,
            wrapped: wrapped.to_vec(),
        });
        remember(&mut roots.opened, &root);
        Ok(root)
    }
}

impl fmt::Debug for FileKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileKeys")
            .field("provider", &self.provider)
            .finish_non_exhaustive()
    }
}

/// The key of one file. Each incarnation of a file has its own: a file that is used again gets a new header and key,
/// so what stood in it before cannot be taken for new.
pub struct FileKey {
    cipher: Arc<Cipher>,
    marker: [u8; Self::MARKER_LEN],
}

impl FileKey {
    /// Length of [`FileKey::marker`].
    pub const MARKER_LEN: usize = 8;

    fn derive(
        root: &SecretKey,
        kind: FileKind,
        salt: &[u8; SALT_LEN],
        context: &[u8],
    ) -> Result<(Self, hmac::Key), SealError> {
        let cipher = Cipher::new(&root.derive(salt, &[b"file frames", &kind.0, context])?)?;
        let mac = root.derive(salt, &[b"file header", &kind.0, context])?;
        let [a, b, c, d, e, f, g, h, ..] = *salt;
        Ok((
            Self {
                cipher: Arc::new(cipher),
                marker: [a, b, c, d, e, f, g, h],
            },
            hmac::Key::new(hmac::HMAC_SHA256, mac.as_bytes()),
        ))
    }

    /// Eight public bytes that are random for each incarnation of a file. Frames begin with them, so that a reader
    /// tells its own frames from what an earlier incarnation left behind them.
    #[must_use]
    pub fn marker(&self) -> [u8; Self::MARKER_LEN] {
        self.marker
    }

    /// Begins writing frames. A file may have many writers, one after the other or at once: each counts from a random
    /// 96-bit start, so two meet only with the probability of a collision of random nonces.
    ///
    /// # Errors
    /// [`SealError::Library`] only.
    pub fn sealer(&self) -> Result<FrameSealer, SealError> {
        let start: [u8; 16] = random()?;
        let [prefix @ .., _, _, _, _, _, _, _, _] = start;
        let [_, _, _, _, _, _, _, _, counter @ ..] = start;
        let [a, b, c, d, ..] = prefix;
        Ok(FrameSealer {
            cipher: Arc::clone(&self.cipher),
            prefix: [a, b, c, d],
            start: u64::from_be_bytes(counter),
            used: 0,
        })
    }

    /// Authenticates `aad` and `sealed` (ciphertext and tag) and decrypts it.
    ///
    /// # Errors
    /// [`SealError::NotAuthentic`], or [`SealError::Malformed`] when it is shorter than a tag.
    pub fn open(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        const WHAT: &str = "frame";
        let length = sealed
            .len()
            .checked_sub(TAG_LEN)
            .ok_or_else(|| SealError::malformed(WHAT, "shorter than its tag"))?;
        let mut plaintext = vec![0u8; length];
        self.cipher
            .open_to(nonce, aad, sealed, &mut plaintext, WHAT)?;
        Ok(plaintext)
    }
}

impl fmt::Debug for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileKey").finish_non_exhaustive()
    }
}

/// Seals the frames of one writer of a file.
pub struct FrameSealer {
    cipher: Arc<Cipher>,
    prefix: [u8; 4],
    start: u64,
    used: u64,
}

impl FrameSealer {
    /// Encrypts `in_out` in place and authenticates it together with `aad`. Returns the nonce and the tag, which the
    /// frame must carry. What is ciphertext already goes into `aad`: authenticated, and not encrypted twice.
    ///
    /// # Errors
    /// [`SealError::Exhausted`] after 2^64 - 1 frames.
    pub fn seal(
        &mut self,
        aad: &[u8],
        in_out: &mut [u8],
    ) -> Result<([u8; NONCE_LEN], [u8; TAG_LEN]), SealError> {
        let used = self.used.checked_add(1).ok_or(SealError::Exhausted)?;
        let nonce = self.nonce();
        // Counted before it is used: a failure must not leave the nonce for the next frame.
        self.used = used;
        let tag = self.cipher.seal(nonce, aad, in_out)?;
        Ok((nonce, tag))
    }

    fn nonce(&self) -> [u8; NONCE_LEN] {
        let [a, b, c, d] = self.prefix;
        let [e, f, g, h, i, j, k, l] = self.start.wrapping_add(self.used).to_be_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l]
    }
}

impl fmt::Debug for FrameSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameSealer")
            .field("used", &self.used)
            .finish_non_exhaustive()
    }
}

struct ParsedHeader<'a> {
    wrapped: &'a [u8],
    salt: [u8; SALT_LEN],
    authenticated: &'a [u8],
    mac: &'a [u8],
    length: usize,
}

impl<'a> ParsedHeader<'a> {
    fn parse(kind: FileKind, bytes: &'a [u8]) -> Result<Self, SealError> {
        let malformed = |reason: String| SealError::malformed(WHAT, reason);
        let short = || malformed(format!("only {} bytes are there", bytes.len()));
        let (magic, rest) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
        if *magic != kind.0 {
            return Err(malformed(format!(
                "it begins with `{}`, not with `{kind}`",
                magic.escape_ascii()
            )));
        }
        let (format, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
        let format = u16::from_be_bytes(*format);
        if format != FORMAT {
            return Err(malformed(format!(
                "format {format}, this version reads {FORMAT}"
            )));
        }
        let (length, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (wrapped_len, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
        let wrapped_len = usize::from(u16::from_be_bytes(*wrapped_len));
        if length != FIXED_LEN + wrapped_len + SALT_LEN + CHECKSUM_LEN + MAC_LEN {
            return Err(malformed("its lengths contradict each other".to_owned()));
        }
        let (wrapped, rest) = rest.split_at_checked(wrapped_len).ok_or_else(short)?;
        let (salt, rest) = rest.split_first_chunk::<SALT_LEN>().ok_or_else(short)?;
        let (sum, rest) = rest.split_first_chunk::<CHECKSUM_LEN>().ok_or_else(short)?;
        let (mac, _) = rest.split_first_chunk::<MAC_LEN>().ok_or_else(short)?;
        let summed = bytes
            .get(..length - MAC_LEN - CHECKSUM_LEN)
            .ok_or_else(short)?;
        // Before the key is looked for: a flipped bit in the key's name is damage, not a missing key.
        if constant_time::verify_slices_are_equal(&checksum(summed), sum).is_err() {
            return Err(malformed("its checksum does not match".to_owned()));
        }
        Ok(Self {
            wrapped,
            salt: *salt,
            authenticated: bytes.get(..length - MAC_LEN).ok_or_else(short)?,
            mac,
            length,
        })
    }
}

/// A checksum against accidents only; the HMAC is what protects against intent.
fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_LEN] {
    let digest = digest::digest(&digest::SHA256, bytes);
    let mut sum = [0u8; CHECKSUM_LEN];
    for (to, from) in sum.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    sum
}

fn remember(opened: &mut Vec<Arc<Root>>, root: &Arc<Root>) {
    if opened.len() >= CACHED_ROOTS {
        opened.remove(0);
    }
    opened.push(Arc::clone(root));
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
