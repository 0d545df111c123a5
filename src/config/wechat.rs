//! What WeChat Pay (APIv3, direct merchants) needs, with its keys read from their files.
//!
//! The names are those of its merchant platform: <https://pay.weixin.qq.com/doc/v3/merchant/4013070756>. The keys that
//! WeChat Pay signs with are platform certificates or public keys (`PUB_KEY_ID_…`); while one takes the other's place both
//! are in use: <https://pay.weixin.qq.com/doc/v3/merchant/4012153196>.

use super::gateways::Section;
use crate::platform::certificate::{Certificate, plain_serial};
use crate::platform::rsa::{PrivateKey, PublicKey};

/// What the ids of public keys begin with; every other key is in a certificate and named by its serial number.
const PUBLIC_KEY_ID: &str = "PUB_KEY_ID_";

/// WeChat Pay's settings, read and checked.
#[derive(Debug, Clone)]
pub struct WechatPay {
    /// Our merchant number.
    pub mchid: String,
    /// The app that is bound to it.
    pub appid: String,
    /// The serial number of our merchant certificate: it names the key that we sign with.
    pub serial_no: String,
    /// Signs what we ask, and what the buyer's WeChat is told.
    pub private_key: PrivateKey,
    /// Opens what notifies hold.
    pub api_v3_key: ApiV3Key,
    /// What WeChat Pay signs with. The first is the one that we ask it to use.
    pub platform_keys: Vec<PlatformKey>,
    /// Where it is, without a trailing slash.
    pub base_url: String,
    /// Whose a payment must be: [`merchant_of`] the merchant number and the application.
    pub merchant: String,
}

/// A merchant and an application in one name: a payment is ours when both are.
pub fn merchant_of(mchid: &str, appid: &str) -> String {
    format!("{mchid} {appid}")
}

/// A key of WeChat Pay.
#[derive(Debug, Clone)]
pub struct PlatformKey {
    /// As `Wechatpay-Serial` names it.
    pub id: String,
    /// Verifies its signatures.
    pub key: PublicKey,
}

impl PlatformKey {
    /// Whether this key is meant. Serial numbers are numbers: their case and leading zeros mean nothing.
    pub fn is(&self, serial: &str) -> bool {
        if self.id.starts_with(PUBLIC_KEY_ID) {
            return self.id == serial;
        }
        plain_serial(&self.id) == plain_serial(serial)
    }
}

/// The APIv3 key: 32 bytes that the merchant and WeChat Pay share.
#[derive(Clone)]
pub struct ApiV3Key(pub [u8; 32]);

impl std::fmt::Debug for ApiV3Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiV3Key")
    }
}

impl WechatPay {
    /// Reads the section `payments.wechat`.
    pub(super) fn read(mut section: Section<'_>) -> Option<Self> {
        let (mchid, appid) = (section.text("mchid"), section.text("appid"));
        let serial_no = section.text("serial_no");
        let private_key =
            section.file("private_key_file", |text| PrivateKey::from_text(text).map_err(|why| why.to_string()));
        let api_v3_key = section.file("api_v3_key_file", api_v3_key);
        let platform_keys = section.files("platform_keys", platform_key);
        let base_url = section.text("base_url");
        let (mchid, appid) = (mchid?, appid?);
        Some(Self {
            merchant: merchant_of(&mchid, &appid),
            mchid,
            appid,
            serial_no: serial_no?,
            private_key: private_key?,
            api_v3_key: api_v3_key?,
            platform_keys: platform_keys?,
            base_url: base_url?,
        })
    }
}

fn api_v3_key(text: &[u8]) -> Result<ApiV3Key, String> {
    let text = text.trim_ascii();
    text.try_into().map(ApiV3Key).map_err(|_| format!("it has {} bytes", text.len()))
}

/// A public key behind its id, or a certificate, perhaps behind its serial number.
fn platform_key(id: Option<&str>, text: &[u8]) -> Result<PlatformKey, String> {
    if let Some(id) = id.filter(|id| id.starts_with(PUBLIC_KEY_ID)) {
        let key = PublicKey::from_text(text).map_err(|why| why.to_string())?;
        return Ok(PlatformKey { id: id.to_owned(), key });
    }
    let Certificate { serial, key } = Certificate::from_pem(text).map_err(|why| why.to_string())?;
    match id {
        // The file of another certificate would fail every signature under a serial number that is known.
        Some(id) if plain_serial(id) != plain_serial(&serial) => Err(format!("its serial number is {serial}")),
        _ => Ok(PlatformKey { id: serial, key }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use aws_lc_rs::signature::KeyPair as _;
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use tempfile::TempDir;

    const PUBLIC: &str = "PUB_KEY_ID_0112345678902024";

    /// Settings as they should be, and the directory that their files are in.
    fn whole() -> (TempDir, Vec<(&'static str, String)>) {
        let dir = tempfile::tempdir().unwrap();
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let (private, public): (Pkcs8V1Der<'_>, PublicKeyX509Der<'_>) =
            (pair.as_der().unwrap(), pair.public_key().as_der().unwrap());
        let file = |name: &str, text: &[u8]| {
            std::fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name).display().to_string()
        };
        let key = file("public", BASE64_STANDARD.encode(public.as_ref()).as_bytes());
        let settings = vec![
            ("mchid", "1900000109".to_owned()),
            ("appid", "wxd678efh567hg6787".to_owned()),
            ("serial_no", "408B".to_owned()),
            ("private_key_file", file("private", BASE64_STANDARD.encode(private.as_ref()).as_bytes())),
            ("api_v3_key_file", file("apiv3", b"0123456789abcdef0123456789abcdef\n")),
            ("platform_keys", format!("{PUBLIC}={key}")),
            ("base_url", "https://api.mch.weixin.qq.com".to_owned()),
        ];
        (dir, settings)
    }

    /// What is read, and every fault.
    fn read(settings: &[(&str, String)]) -> (Option<WechatPay>, Vec<String>) {
        let mut builder = config::Config::builder();
        for (name, value) in settings {
            builder = builder.set_override(format!("payments.wechat.{name}"), value.clone()).unwrap();
        }
        let (raw, mut faults) = (builder.build().unwrap(), Vec::new());
        let read = Section::if_on(&raw, "payments.wechat", &mut faults).and_then(WechatPay::read);
        assert_eq!(read.is_none(), !faults.is_empty() || settings.len() < 2, "{faults:?}");
        (read, faults)
    }

    #[test]
    fn with_nothing_of_its_own_it_is_off_and_with_all_it_is_whole() {
        assert!(read(&[("base_url", "https://api.mch.weixin.qq.com".to_owned())]).1.is_empty());
        let (_dir, settings) = whole();
        let read = read(&settings).0.unwrap();
        assert_eq!((&*read.merchant, read.platform_keys.len()), ("1900000109 wxd678efh567hg6787", 1));
        assert!(read.platform_keys[0].is(PUBLIC) && !read.platform_keys[0].is("PUB_KEY_ID_0112345678902025"));
        let printed = format!("{read:?}");
        assert!(!printed.contains("0123456789abcdef") && !printed.contains("MII"), "{printed}");
    }

    #[test]
    fn what_is_missing_is_told_all_together() {
        let (_dir, settings) = whole();
        for (at, given) in settings[..6].iter().enumerate() {
            let (_, faults) = read(&[given.clone(), settings[6].clone()]);
            assert_eq!(faults.len(), 5, "{faults:?}");
            for (other, (name, _)) in settings[..6].iter().enumerate() {
                let told = format!("ONRUSH_PAYMENTS__WECHAT__{} is not set", name.to_uppercase());
                assert_eq!(faults.iter().any(|fault| fault.starts_with(&told)), at != other, "{told}: {faults:?}");
            }
        }
    }

    #[test]
    fn each_file_must_hold_what_it_is_named_for() {
        let (dir, settings) = whole();
        let path = |name: &str| dir.path().join(name).display().to_string();
        for (name, value, told) in [
            ("private_key_file", path("nothing"), "nothing: No such file"),
            ("private_key_file", path("apiv3"), "apiv3: "),
            ("api_v3_key_file", path("public"), "public: it has 392 bytes"),
            ("platform_keys", format!("{PUBLIC}={}", path("apiv3")), "apiv3: "),
            ("platform_keys", path("public"), "public: is no PEM with a certificate"),
            ("platform_keys", format!("408B={}", path("public")), "public: is no PEM with a certificate"),
            ("platform_keys", " , ".to_owned(), "PUB_KEY_ID_…=path"),
        ] {
            let mut changed = settings.clone();
            changed.push((name, value));
            let (_, faults) = read(&changed);
            assert!(faults.len() == 1 && faults[0].contains(told), "{told}: {faults:?}");
            assert!(!faults[0].contains("0123456789abcdef"), "{faults:?}");
        }
    }

    #[test]
    fn a_certificate_is_named_by_its_serial_number() {
        const SERIAL: &str = "B1C2D3E4F5061728394A5B6C7D8E9F0A1B2C3D";
        let (dir, mut settings) = whole();
        let path = dir.path().join("certificate");
        std::fs::write(&path, include_str!("../../crates/platform/src/certificate.example.pem")).unwrap();
        let public = settings[5].1.clone();
        for name in [String::new(), format!("{SERIAL}="), format!("00{}=", SERIAL.to_lowercase())] {
            settings[5].1 = format!("{public},{name}{}", path.display());
            let keys = read(&settings).0.unwrap().platform_keys;
            assert_eq!((keys.len(), &*keys[1].id), (2, SERIAL));
            assert!(keys[1].is(SERIAL) && keys[1].is(&SERIAL.to_lowercase()) && !keys[1].is(PUBLIC));
        }
        settings[5].1 = format!("408B={}", path.display());
        assert!(read(&settings).1[0].ends_with(&format!("its serial number is {SERIAL}")));
    }
}
