#![allow(clippy::unwrap_used, clippy::panic)]

use aws_lc_rs::{digest, hmac, pbkdf2};
use proptest::prelude::*;

use super::*;
use crate::name::NameError;

fn decoy() -> Decoy {
    Decoy::from_bytes([42; 32])
}

/// A client of its own, written from RFC 5802 and not from the code under test.
struct Client {
    mechanism: ScramMechanism,
    password: String,
    header: &'static str,
    bare: String,
}

impl Client {
    fn new(mechanism: ScramMechanism, escaped_user: &str, password: &str) -> Self {
        Self {
            mechanism,
            password: password.to_owned(),
            header: "n,,",
            bare: format!("n={escaped_user},r=clientnonce"),
        }
    }

    fn first(&self) -> Vec<u8> {
        format!("{}{}", self.header, self.bare).into_bytes()
    }

    /// The final message, and the `v=` that the server has to answer.
    fn last(&self, server_first: &[u8]) -> (String, String) {
        let server_first = std::str::from_utf8(server_first).unwrap();
        let mut parts = server_first.split(',');
        let nonce = parts.next().unwrap().strip_prefix("r=").unwrap();
        let salt = parts.next().unwrap().strip_prefix("s=").unwrap();
        let salt = STANDARD.decode(salt).unwrap();
        let iterations = parts.next().unwrap().strip_prefix("i=").unwrap();
        let (algorithm, mac, hash) = match self.mechanism {
            ScramMechanism::Sha256 => (
                pbkdf2::PBKDF2_HMAC_SHA256,
                hmac::HMAC_SHA256,
                &digest::SHA256,
            ),
            ScramMechanism::Sha512 => (
                pbkdf2::PBKDF2_HMAC_SHA512,
                hmac::HMAC_SHA512,
                &digest::SHA512,
            ),
        };
        let mut salted = vec![0; self.mechanism.hash_len()];
        let rounds = std::num::NonZeroU32::new(iterations.parse().unwrap()).unwrap();
        pbkdf2::derive(
            algorithm,
            rounds,
            &salt,
            self.password.as_bytes(),
            &mut salted,
        );
        let sign = |key: &[u8], data: &[u8]| {
            hmac::sign(&hmac::Key::new(mac, key), data)
                .as_ref()
                .to_vec()
        };
        let client_key = sign(&salted, b"Client Key");
        let stored_key = digest::digest(hash, &client_key);
        let without_proof = format!("c={},r={nonce}", STANDARD.encode(self.header));
        let auth = format!("{},{server_first},{without_proof}", self.bare);
        let proof: Vec<u8> = sign(stored_key.as_ref(), auth.as_bytes())
            .iter()
            .zip(&client_key)
            .map(|(left, right)| left ^ right)
            .collect();
        let server_key = sign(&salted, b"Server Key");
        let signature = STANDARD.encode(sign(&server_key, auth.as_bytes()));
        (
            format!("{without_proof},p={}", STANDARD.encode(proof)),
            format!("v={signature}"),
        )
    }
}

fn stored(mechanism: ScramMechanism, password: &str) -> ScramCredential {
    ScramCredential::from_password(mechanism, password, MIN_ITERATIONS).unwrap()
}

fn continue_bytes(step: ScramStep) -> Vec<u8> {
    match step {
        ScramStep::Continue(bytes) => bytes,
        ScramStep::Done { .. } => panic!("done too early"),
    }
}

/// Runs a whole exchange of `client` against `credential`.
fn exchange(
    client: &Client,
    credential: Option<&ScramCredential>,
) -> Result<(ScramStep, String), ScramError> {
    let mut server = ScramServer::new(client.mechanism, decoy());
    let first = continue_bytes(server.step(&client.first(), |_| credential.cloned())?);
    let (last, signature) = client.last(&first);
    Ok((server.step(last.as_bytes(), |_| None)?, signature))
}

#[test]
fn the_published_exchange_of_rfc_7677() {
    let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let credential =
        ScramCredential::from_password_and_salt(ScramMechanism::Sha256, "pencil", salt, 4096)
            .unwrap();
    let mut server = ScramServer::with_nonce(
        ScramMechanism::Sha256,
        decoy(),
        "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
    );
    let first = server
        .step(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO", |user| {
            assert_eq!(user, "user");
            Some(credential)
        })
        .unwrap();
    assert_eq!(
        first,
        ScramStep::Continue(
            b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
                .to_vec()
        )
    );
    let last = server.step(
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        |_| None,
    );
    assert_eq!(
        last,
        Ok(ScramStep::Done {
            message: b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=".to_vec(),
            user: "user".to_owned(),
        })
    );
}

#[test]
fn both_mechanisms_end_with_the_servers_own_proof() {
    for mechanism in ScramMechanism::ALL {
        let client = Client::new(mechanism, "alice", "secret");
        let (done, signature) = exchange(&client, Some(&stored(mechanism, "secret"))).unwrap();
        assert_eq!(
            done,
            ScramStep::Done {
                message: signature.into_bytes(),
                user: "alice".to_owned(),
            }
        );
    }
}

#[test]
fn flag_y_and_an_equal_authorization_id_are_fine() {
    let mechanism = ScramMechanism::Sha512;
    for header in ["y,,", "n,a=alice,", "n,a=,"] {
        let client = Client {
            header,
            ..Client::new(mechanism, "alice", "secret")
        };
        assert!(
            exchange(&client, Some(&stored(mechanism, "secret"))).is_ok(),
            "{header}"
        );
    }
}

#[test]
fn escaped_names_are_unescaped_before_they_are_looked_up() {
    let mechanism = ScramMechanism::Sha256;
    let client = Client::new(mechanism, "a=2Cb=3Dc=2C", "secret");
    let (done, _) = exchange(&client, Some(&stored(mechanism, "secret"))).unwrap();
    assert!(matches!(done, ScramStep::Done { user, .. } if user == "a,b=c,"));
}

#[test]
fn a_wrong_password_an_unknown_user_and_the_wrong_mechanism_look_alike_to_the_client() {
    let mechanism = ScramMechanism::Sha512;
    let client = Client::new(mechanism, "alice", "wrong");
    let user = || "alice".to_owned();
    let wrong = exchange(&client, Some(&stored(mechanism, "secret"))).unwrap_err();
    assert_eq!(
        wrong,
        ScramError::WrongProof {
            user: user(),
            mechanism
        }
    );
    let unknown = exchange(&client, None).unwrap_err();
    assert_eq!(
        unknown,
        ScramError::UnknownUser {
            user: user(),
            mechanism
        }
    );
    let other = exchange(&client, Some(&stored(ScramMechanism::Sha256, "wrong"))).unwrap_err();
    assert_eq!(
        other,
        ScramError::UnknownUser {
            user: user(),
            mechanism
        }
    );
    let texts: std::collections::BTreeSet<String> = [&wrong, &unknown, &other]
        .map(|error| error.client_message(mechanism))
        .into();
    assert_eq!(
        texts.into_iter().collect::<Vec<_>>(),
        [
            "Authentication failed during authentication due to invalid credentials with SASL mechanism SCRAM-SHA-512"
        ]
    );
    assert_eq!(
        unknown.to_string(),
        "user `alice` has no SCRAM-SHA-512 credential"
    );
}

#[test]
fn an_unknown_user_has_the_same_salt_every_time_and_another_one_another() {
    let salt_of = |user: &str, decoy: Decoy| {
        let mut server = ScramServer::new(ScramMechanism::Sha256, decoy);
        let first = format!("n,,n={user},r=abc");
        let answer = continue_bytes(server.step(first.as_bytes(), |_| None).unwrap());
        let text = String::from_utf8(answer).unwrap();
        let (_, rest) = text.split_once(",s=").unwrap();
        let (salt, iterations) = rest.split_once(",i=").unwrap();
        // As those of users whom the operator has made.
        assert!((4_097..8_192).contains(&iterations.parse().unwrap()));
        assert_eq!(STANDARD.decode(salt).unwrap().len(), 24);
        rest.to_owned()
    };
    assert_eq!(salt_of("nobody", decoy()), salt_of("nobody", decoy()));
    assert_ne!(salt_of("nobody", decoy()), salt_of("nobody2", decoy()));
    assert_ne!(
        salt_of("nobody", decoy()),
        salt_of("nobody", Decoy::from_bytes([1; 32]))
    );
}

#[test]
fn another_authorization_id_is_refused() {
    let mut server = ScramServer::new(ScramMechanism::Sha256, decoy());
    let error = server.step(b"n,a=bob,n=alice,r=abc", |_| None).unwrap_err();
    assert_eq!(
        error,
        ScramError::AuthorizationId {
            user: "alice".to_owned()
        }
    );
}

#[test]
fn a_changed_nonce_or_header_in_the_second_message_is_refused() {
    let mechanism = ScramMechanism::Sha256;
    let client = Client::new(mechanism, "alice", "secret");
    let begun = || {
        let mut server = ScramServer::new(mechanism, decoy());
        let credential = stored(mechanism, "secret");
        let first = continue_bytes(server.step(&client.first(), |_| Some(credential)).unwrap());
        (server, client.last(&first).0)
    };
    let user = || "alice".to_owned();
    let (mut server, last) = begun();
    let other_nonce = last.replacen("r=clientnonce", "r=clientnoncf", 1);
    assert_eq!(
        server.step(other_nonce.as_bytes(), |_| None),
        Err(ScramError::Nonce { user: user() })
    );
    assert_eq!(
        server.step(last.as_bytes(), |_| None),
        Err(ScramError::Finished)
    );
    let (mut server, last) = begun();
    let other_header = last.replacen("c=biws", "c=eSws", 1);
    assert_eq!(
        server.step(other_header.as_bytes(), |_| None),
        Err(ScramError::ChannelBinding { user: user() })
    );
    let (mut server, last) = begun();
    let (start, _) = last.rsplit_once(",p=").unwrap();
    let short = format!("{start},p=AAAA");
    assert_eq!(
        server.step(short.as_bytes(), |_| None),
        Err(ScramError::WrongProof {
            user: user(),
            mechanism
        })
    );
}

#[test]
fn first_messages_that_are_refused_and_why() {
    use MessageError as E;
    let long = format!("n,,n=u,r={}", "x".repeat(MAX_MESSAGE_BYTES));
    let many = format!("n,,n=u,r=x{}", ",a=b".repeat(20));
    for (message, error) in [
        ("", E::Expected("a channel-binding flag and a comma")),
        ("p=tls-unique,,n=u,r=x", E::ChannelBinding),
        (
            "x,,n=u,r=x",
            E::Expected("the channel-binding flag `n` or `y`"),
        ),
        (
            "n,b,n=u,r=x",
            E::Expected("`a=` or nothing before the second comma"),
        ),
        ("n,,m=x,n=u,r=x", E::MandatoryExtension),
        ("n,,r=x", E::Expected("the user name, `n=`")),
        ("n,,n=u", E::Expected("the nonce, `r=`")),
        ("n,,n=,r=x", E::Name(NameError::Empty)),
        ("n,,n=a=b,r=x", E::Escape),
        ("n,,n=a=2c,r=x", E::Escape),
        (
            "n,,n=a\nb,r=x",
            E::Name(NameError::Forbidden { code: 10, at: 1 }),
        ),
        ("n,,n=u,r=", E::Nonce),
        ("n,,n=u,r=a b", E::Nonce),
        ("n,,n=u,r=x,tokenauth=true", E::TokenAuthentication),
        ("n,,n=u,r=x,m=1", E::MandatoryExtension),
        ("n,,n=u,r=x,bare", E::Expected("an extension, `name=value`")),
        (many.as_str(), E::TooManyExtensions),
        (long.as_str(), E::TooLong(long.len())),
    ] {
        assert_eq!(
            ClientFirst::parse(message.as_bytes()).unwrap_err(),
            error,
            "{message:.40}"
        );
    }
    assert_eq!(
        ClientFirst::parse(b"n,,n=\xff,r=x").unwrap_err(),
        E::NotUtf8
    );
    assert!(ClientFirst::parse(b"n,,n=u,r=x,tokenauth=false,ext=1").is_ok());
    assert_eq!(
        ScramError::Message(E::TokenAuthentication).client_message(ScramMechanism::Sha256),
        "Invalid SCRAM-SHA-256 message: authentication with a delegation token (tokenauth) is not supported; use the password of a user"
    );
}

#[test]
fn second_messages_that_are_refused_and_why() {
    use MessageError as E;
    for (message, error) in [
        ("c=biws,r=x", E::Expected("the proof, `p=`, at the end")),
        ("c=biws,r=x,p=!!", E::Base64("the proof")),
        ("c=!,r=x,p=AAAA", E::Base64("the channel binding")),
        ("r=x,p=AAAA", E::Expected("the channel binding, `c=`")),
        ("c=biws,p=AAAA", E::Expected("the nonce, `r=`")),
    ] {
        assert_eq!(
            ClientFinal::parse(message.as_bytes()).unwrap_err(),
            error,
            "{message}"
        );
    }
}

#[test]
fn credentials_are_checked_before_they_are_stored() {
    use CredentialError as E;
    let mechanism = ScramMechanism::Sha256;
    let salted = |salt: &[u8], iterations, length| {
        ScramCredential::from_salted_password(mechanism, salt, iterations, &vec![1; length])
    };
    assert!(salted(b"salt", 4096, 32).is_ok());
    assert!(salted(b"salt", 16_384, 32).is_ok());
    assert_eq!(salted(b"salt", 4095, 32), Err(E::TooFewIterations(4095)));
    assert_eq!(salted(b"salt", -1, 32), Err(E::TooFewIterations(-1)));
    assert_eq!(
        salted(b"salt", 16_385, 32),
        Err(E::TooManyIterations(16_385))
    );
    assert_eq!(salted(b"", 4096, 32), Err(E::Salt(0)));
    assert_eq!(salted(&[0; 257], 4096, 32), Err(E::Salt(257)));
    assert_eq!(
        salted(b"salt", 4096, 64),
        Err(E::SaltedPassword {
            mechanism,
            found: 64,
            expected: 32
        })
    );
    assert_eq!(
        ScramCredential::from_password(mechanism, "", 4096),
        Err(E::EmptyPassword)
    );
    assert_eq!(
        ScramCredential::from_password(mechanism, "x", 100),
        Err(E::TooFewIterations(100))
    );
}

#[test]
fn a_credential_from_the_salted_password_is_the_one_from_the_password() {
    for mechanism in ScramMechanism::ALL {
        let mut salted = vec![0; mechanism.hash_len()];
        let algorithm = match mechanism {
            ScramMechanism::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            ScramMechanism::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        };
        let rounds = std::num::NonZeroU32::new(5000).unwrap();
        pbkdf2::derive(
            algorithm,
            rounds,
            b"some salt",
            "pässword".as_bytes(),
            &mut salted,
        );
        let left =
            ScramCredential::from_salted_password(mechanism, b"some salt", 5000, &salted).unwrap();
        let right = ScramCredential::from_password_and_salt(
            mechanism,
            "pässword",
            b"some salt".to_vec(),
            5000,
        )
        .unwrap();
        assert_eq!(left, right);
        assert!(left.verify_password("pässword"));
        assert!(!left.verify_password("password"));
    }
}

#[test]
fn nothing_secret_is_printed() {
    let credential = stored(ScramMechanism::Sha256, "secret");
    let text = format!("{credential:?} {:?}", decoy());
    assert_eq!(
        text,
        "ScramCredential { mechanism: Sha256, iterations: 4096, .. } Decoy(..)"
    );
}

#[test]
fn a_credential_survives_storage() {
    let credential = stored(ScramMechanism::Sha512, "secret");
    let bytes = postcard::to_allocvec(&credential).unwrap();
    assert_eq!(
        postcard::from_bytes::<ScramCredential>(&bytes).unwrap(),
        credential
    );
}

proptest! {
    #[test]
    fn arbitrary_messages_never_panic(
        first in proptest::collection::vec(any::<u8>(), 0..200),
        last in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut server = ScramServer::new(ScramMechanism::Sha256, decoy());
        let _ = server.step(&first, |_| None);
        let _ = server.step(&last, |_| None);
        let _ = ClientFinal::parse(&last);
    }

    #[test]
    fn any_allowed_name_survives_escaping(user in "[^\\p{C}\\p{Z}]{1,20}", nonce in "[!-+\\--~]{1,40}") {
        let escaped = user.replace('=', "=3D").replace(',', "=2C");
        let first = ClientFirst::parse(format!("n,,n={escaped},r={nonce}").as_bytes()).unwrap();
        prop_assert_eq!(first.user, user);
        prop_assert_eq!(first.nonce, nonce);
    }

    #[test]
    fn a_proof_with_any_bit_changed_is_refused(byte in 0_usize..32, bit in 0_u8..8) {
        let mechanism = ScramMechanism::Sha256;
        let credential = ScramCredential::from_password_and_salt(
            mechanism, "secret", vec![3; 16], 4096,
        ).unwrap();
        let client = Client::new(mechanism, "alice", "secret");
        let mut server = ScramServer::new(mechanism, decoy());
        let first = continue_bytes(server.step(&client.first(), |_| Some(credential)).unwrap());
        let (last, _) = client.last(&first);
        let (start, proof) = last.rsplit_once(",p=").unwrap();
        let mut proof = STANDARD.decode(proof).unwrap();
        proof[byte] ^= 1 << bit;
        let changed = format!("{start},p={}", STANDARD.encode(proof));
        let wrong = matches!(
            server.step(changed.as_bytes(), |_| None),
            Err(ScramError::WrongProof { .. })
        );
        prop_assert!(wrong);
    }
}
