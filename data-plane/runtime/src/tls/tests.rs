use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: Arc<[u8]>,
}

struct Leaf {
    chain: String,
    key: String,
    serial: SerialNumber,
}

impl Leaf {
    fn identity(&self) -> Identity {
        Identity::from_pem(self.chain.as_bytes(), self.key.as_bytes()).unwrap()
    }
}

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem().into_bytes().into(), issuer: Issuer::new(params, key) }
    }

    fn issue(&self, names: &[SanType], serial: u64) -> Leaf {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Example, Inc");
        params.distinguished_name.push(DnType::CommonName, "edge-7");
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Leaf { chain: certificate.pem(), key: key.serialize_pem(), serial: SerialNumber::from(serial) }
    }

    fn revoke(&self, leaf: Option<&Leaf>) -> Arc<[u8]> {
        let day = |day| rcgen::date_time_ymd(day, 1, 1);
        let revoked = leaf.map(|leaf| RevokedCertParams {
            serial_number: leaf.serial.clone(),
            revocation_time: day(2025),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: day(2025),
            next_update: day(2090),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.into_iter().collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap().into_bytes().into()
    }

    fn trust(&self) -> Trust {
        Trust { roots: Roots::Pem(Arc::clone(&self.pem)), crl: None, sans: Vec::new() }
    }
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

fn server(identities: Vec<Identity>) -> ServerTls {
    ServerTls {
        identities,
        trust: None,
        require_client_certificate: false,
        alpn: Vec::new(),
        min: Version::V1_2,
        max: Version::V1_3,
    }
}

fn client(trust: Option<Trust>) -> ClientTls {
    ClientTls {
        identity: None,
        trust,
        verify_server_name: false,
        send_server_name: true,
        alpn: Vec::new(),
        min: Version::V1_2,
        max: Version::V1_3,
    }
}

fn uri_check(wanted: &'static str) -> SanCheck {
    SanCheck { kind: SanKind::Uri, accepts: Arc::new(move |name| name == wanted) }
}

#[derive(Debug)]
struct Met {
    alpn: Option<Vec<u8>>,
    server: CertificateDetails,
    client: Option<CertificateDetails>,
}

/// A handshake over memory and one byte each way.
async fn meet(server: ServerTls, client: ClientTls, name: &str) -> Result<Met, String> {
    let acceptor = TlsAcceptor::from(server_config(server).unwrap());
    let connector = TlsConnector::from(client_config(client).unwrap());
    let (near, far) = tokio::io::duplex(64 * 1024);
    let accept = async {
        let mut stream = acceptor.accept(far).await.map_err(|error| format!("server: {error}"))?;
        stream.write_all(b"x").await.map_err(|error| format!("server: {error}"))?;
        stream.flush().await.map_err(|error| format!("server: {error}"))?;
        let client = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
        Ok::<_, String>(client)
    };
    let connect = async {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut stream = connector.connect(name, near).await.map_err(|error| format!("client: {error}"))?;
        // TLS 1.3: a refusal of the client's certificate comes after its handshake.
        stream.read_u8().await.map_err(|error| format!("client: {error}"))?;
        let session = stream.get_ref().1;
        let server = session.peer_certificates().and_then(<[_]>::first).cloned().unwrap();
        Ok::<_, String>((session.alpn_protocol().map(<[u8]>::to_vec), server))
    };
    let (accepted, connected) = tokio::join!(accept, connect);
    let (client, (alpn, server)) = match (accepted, connected) {
        (Ok(client), Ok(server)) => (client, server),
        (Err(server), Err(client)) => return Err(format!("{server}; {client}")),
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    let details = |der: &[u8]| CertificateDetails::parse(der).unwrap();
    Ok(Met { alpn, server: details(&server), client: client.map(|der| details(&der)) })
}

#[tokio::test]
async fn certificates_are_chosen_by_server_name() {
    let ca = Ca::new("root");
    let identities: Vec<Identity> = [("fallback.test", 1), ("*.example.com", 2), ("www.example.com", 3)]
        .map(|(name, serial)| ca.issue(&[dns(name)], serial).identity())
        .into();
    let cases = [
        ("www.example.com", "www.example.com"),
        ("WWW.example.com", "www.example.com"),
        ("api.example.com", "*.example.com"),
        ("a.b.example.com", "fallback.test"),
        ("example.com", "fallback.test"),
        ("127.0.0.1", "fallback.test"),
    ];
    for (asked, expected) in cases {
        let met = meet(server(identities.clone()), client(None), asked).await.unwrap();
        assert_eq!(met.server.dns_sans, [expected], "certificate for {asked}");
    }
}

#[tokio::test]
async fn a_server_is_judged_by_its_chain_and_its_names() {
    let (ca, stranger) = (Ca::new("root"), Ca::new("stranger"));
    let leaf = ca.issue(&[dns("gateway.test"), uri("spiffe://td/gateway")], 1);
    let with_sans = |wanted| Trust { sans: vec![uri_check(wanted)], ..ca.trust() };
    let cases: [(&str, ClientTls, &str, Option<&str>); 8] = [
        ("no trust at all", client(None), "other.test", None),
        ("the right root and name", client(Some(ca.trust())), "gateway.test", None),
        ("the wrong name", client(Some(ca.trust())), "other.test", Some("not valid for name")),
        ("no name at all", client(Some(ca.trust())), "127.0.0.1", None),
        ("the wrong root", client(Some(stranger.trust())), "gateway.test", Some("UnknownIssuer")),
        ("a SAN instead of the name", client(Some(with_sans("spiffe://td/gateway"))), "other.test", None),
        (
            "another SAN",
            client(Some(with_sans("spiffe://td/other"))),
            "gateway.test",
            Some("ApplicationVerificationFailure"),
        ),
        (
            "the SAN and the name",
            ClientTls { verify_server_name: true, ..client(Some(with_sans("spiffe://td/gateway"))) },
            "other.test",
            Some("not valid for name"),
        ),
    ];
    for (what, tls, name, refusal) in cases {
        let met = meet(server(vec![leaf.identity()]), tls, name).await;
        match (met, refusal) {
            (Ok(_), None) => {}
            (Err(error), Some(refusal)) => assert!(error.contains(refusal), "{what}: wrong refusal: {error}"),
            (met, refusal) => panic!("{what}: expected {refusal:?}, got {met:?}"),
        }
    }
}

#[tokio::test]
async fn a_client_is_judged_as_the_server_demands() {
    let (ca, stranger) = (Ca::new("root"), Ca::new("stranger"));
    let edge = ca.issue(&[uri("spiffe://td/edge")], 7);
    let revoked = ca.issue(&[uri("spiffe://td/edge")], 8);
    let foreign = stranger.issue(&[uri("spiffe://td/edge")], 9);
    let demand = |require, sans: Vec<SanCheck>, crl| ServerTls {
        trust: Some(Trust { sans, crl, ..ca.trust() }),
        require_client_certificate: require,
        ..server(vec![ca.issue(&[dns("gateway.test")], 1).identity()])
    };
    let check = || vec![uri_check("spiffe://td/edge")];
    let cases: [(&str, ServerTls, Option<&Leaf>, bool); 8] = [
        ("optional, none shown", demand(false, check(), None), None, true),
        ("optional, a foreign one shown", demand(false, Vec::new(), None), Some(&foreign), false),
        ("required, none shown", demand(true, Vec::new(), None), None, false),
        ("required, the right one", demand(true, check(), None), Some(&edge), true),
        ("required, a foreign one", demand(true, check(), None), Some(&foreign), false),
        ("the wrong SAN", demand(true, vec![uri_check("spiffe://td/other")], None), Some(&edge), false),
        ("revoked", demand(true, check(), Some(ca.revoke(Some(&revoked)))), Some(&revoked), false),
        ("another one is revoked", demand(true, check(), Some(ca.revoke(Some(&revoked)))), Some(&edge), true),
    ];
    for (what, tls, shown, accepted) in cases {
        if let (Some(leaf), Some(trust)) = (shown, &tls.trust) {
            let chain: Vec<_> = CertificateDer::pem_slice_iter(leaf.chain.as_bytes()).map(Result::unwrap).collect();
            let judged = ClientTrust::new(trust).unwrap().judge(&chain);
            assert_eq!(judged.is_ok(), accepted, "{what}: judged again {judged:?}");
        }
        let tls_client = ClientTls { identity: shown.map(Leaf::identity), ..client(Some(ca.trust())) };
        let met = meet(tls, tls_client, "gateway.test").await;
        assert_eq!(met.is_ok(), accepted, "{what}: got {met:?}");
        if let (Ok(met), Some(leaf)) = (met, shown) {
            let details = met.client.unwrap();
            assert_eq!(details.uri_sans, ["spiffe://td/edge"], "{what}: the peer's URI");
            assert_eq!(details.subject, "CN=edge-7,O=Example\\, Inc", "{what}: the peer's subject");
            assert_eq!(details.serial, format!("{:02x}", leaf.serial.to_bytes()[7]), "{what}: the peer's serial");
            assert_eq!(details.sha256.len(), 64, "{what}: the peer's fingerprint");
        }
    }
}

#[tokio::test]
async fn versions_and_alpn_are_those_of_the_values() {
    let leaf = Ca::new("root").issue(&[dns("gateway.test")], 1);
    let only = |min, max| ServerTls { min, max, ..server(vec![leaf.identity()]) };
    let old = ClientTls { max: Version::V1_2, ..client(None) };
    assert!(meet(only(Version::V1_2, Version::V1_2), client(None), "a.test").await.is_ok(), "both speak 1.2");
    let refused = meet(only(Version::V1_3, Version::V1_3), old, "a.test").await;
    assert!(refused.is_err(), "a client of 1.2 is refused by a server of 1.3");
    let inverted = server_config(only(Version::V1_3, Version::V1_2));
    assert!(matches!(inverted, Err(TlsError::Versions)), "the least is above the greatest");

    let mut h2 = server(vec![leaf.identity()]);
    h2.alpn = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let both = ClientTls { alpn: vec![b"http/1.1".to_vec(), b"h2".to_vec()], ..client(None) };
    let met = meet(h2, both, "a.test").await.unwrap();
    assert_eq!(met.alpn.as_deref(), Some(&b"h2"[..]), "the server's preference decides");
}

/// `openssl x509 -req` without a file of extensions makes such ones: Envoy serves them, and clients judge.
#[tokio::test]
async fn certificates_of_version_1_are_served() {
    let old = Identity::from_pem(VERSION_1.as_bytes(), VERSION_1_KEY.as_bytes()).unwrap();
    assert_eq!(old.details().subject, "CN=v1.test");
    let met = meet(server(vec![old.clone()]), client(None), "v1.test").await.unwrap();
    assert_eq!(met.server.subject, "CN=v1.test", "whoever believes everyone believes it");
    let ca = Ca::new("root");
    let strict = meet(server(vec![old]), client(Some(ca.trust())), "v1.test").await;
    assert!(strict.is_err(), "nobody vouches for it, got {strict:?}");
    let other = ca.issue(&[dns("one.test")], 1);
    let error = Identity::from_pem(VERSION_1.as_bytes(), other.key.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("does not belong to the leaf"), "got '{error}'");
}

const VERSION_1: &str = "\
-----BEGIN CERTIFICATE-----
MIIBITCBxwIUdx5pmBnymbJ+67dQ4Sq9WZEKa8owCgYIKoZIzj0EAwIwEjEQMA4G
A1UEAwwHdjEudGVzdDAgFw0yNjExMjIwNzM4MzVaGA8yMTI2MTAyOTA3MzgzNVow
EjEQMA4GA1UEAwwHdjEudGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABLMS
UFW34m6SkEG6TczZcFRcf49ZoSKiFT383hwpIpvofzx2rOfUKBs82OtLsbYE4WxU
bJR20dmqr3kL4uJG25IwCgYIKoZIzj0EAwIDSQAwRgIhANuilKeDVZNMFb6aOd8K
8XnnKGyAg4mUA802sKpZj53pAiEAz7OwW9uPUhMQpuMCqks4fevVhrCHtHE8cfTX
80iqYZw=
-----END CERTIFICATE-----";
const VERSION_1_KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg4TjYiG9dcN5RiXRX
WwvWuwP9D6awafAxkOBQItF1kYOhRANCAASzElBVt+JukpBBuk3M2XBUXH+PWaEi
ohU9/N4cKSKb6H88dqzn1CgbPNjrS7G2BOFsVGyUdtHZqq95C+LiRtuS
-----END PRIVATE KEY-----";

#[test]
fn bad_values_are_refused_with_their_reason() {
    let ca = Ca::new("root");
    let (one, two) = (ca.issue(&[dns("one.test")], 1), ca.issue(&[dns("two.test")], 2));
    let cases = [
        (one.chain.as_str(), two.key.as_str(), "does not belong to the leaf"),
        ("", one.key.as_str(), "no CERTIFICATE block"),
        (one.key.as_str(), one.key.as_str(), "no CERTIFICATE block"),
        (one.chain.as_str(), "garbage", "private key is not PEM"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", one.key.as_str(), "cannot be used"),
    ];
    for (chain, key, reason) in cases {
        let error = Identity::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(reason), "expected '{reason}', got '{error}'");
    }
    let nobody = Trust { roots: Roots::Pem(b"nothing"[..].into()), crl: None, sans: Vec::new() };
    let error = client_config(client(Some(nobody))).unwrap_err();
    assert!(matches!(error, TlsError::RootsEmpty), "no roots, got {error}");
    let blind = ServerTls { require_client_certificate: true, ..server(vec![one.identity()]) };
    assert!(matches!(server_config(blind), Err(TlsError::NoTrust)), "nothing to verify clients with");
    assert!(matches!(server_config(server(Vec::new())), Err(TlsError::NoCertificate)), "nothing to present");
}
