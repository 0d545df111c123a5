//! X.509 certificates of companies that sign what they send: the serial number that names one, and the key in it.
//!
//! Nothing is said about who issued it: whoever names the file in the settings vouches for it.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use webpki::EndEntityCert;

use super::rsa::{BadKey, PublicKey};

/// Why a text holds no certificate that we can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadCertificate {
    /// Not PEM, or PEM without a certificate.
    #[error("is no PEM with a certificate")]
    NotPem,
    /// The certificate cannot be read.
    #[error("holds no X.509 certificate of version 3")]
    Unreadable,
    /// Its key is none that we can use.
    #[error("holds a certificate whose key cannot be used: it {0}")]
    Key(BadKey),
}

/// What we use of a certificate.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// Its serial number in upper-case hexadecimal, as `openssl x509 -serial` writes it.
    pub serial: String,
    /// Verifies what its owner signed.
    pub key: PublicKey,
}

impl Certificate {
    /// The first certificate in the text of a PEM file.
    pub fn from_pem(text: &[u8]) -> Result<Self, BadCertificate> {
        let der = CertificateDer::from_pem_slice(text).map_err(|_| BadCertificate::NotPem)?;
        let read = EndEntityCert::try_from(&der).map_err(|_| BadCertificate::Unreadable)?;
        let key = PublicKey::from_spki_der(&read.subject_public_key_info()).map_err(BadCertificate::Key)?;
        // A number whose first bit is set has a zero byte before it, which is not part of it.
        let bytes = read.serial().iter().skip_while(|byte| **byte == 0);
        Ok(Self { serial: bytes.map(|byte| format!("{byte:02X}")).collect(), key })
    }
}

/// A serial number to compare with another: it is a number, so its case and leading zeros mean nothing.
pub fn plain_serial(text: &str) -> String {
    text.trim_start_matches('0').to_ascii_uppercase()
}

/// Made by `openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -set_serial 0xB1C2D3E4F5061728394A5B6C7D8E9F0A1B2C3D
/// -subj "/CN=Tenpay.com sign/O=Tenpay.com"`; the serial number begins with a zero byte, as one with a high first bit does.
#[cfg(test)]
const EXAMPLE: &str = include_str!("certificate.example.pem");

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use proptest::prelude::*;

    /// `printf message | openssl dgst -sha256 -sign key.pem | base64`
    const SIGNATURE: &str = "f4oPPOZmDndmNJXFP7bLJ4q27C8MVsvEM4PVgYEJ/Hltr+UKkmPjTzxKWvvgETDd64EICPLgb+iviJfyWAVMAHAcllWjMgEmd68J\
        62VkivmDMztZ4Hn/hhIOXyHcr22zlWjEQLMSFOTB/lWv+XN/EIC2iwYNxd0dM4Ouo82D7RG126BqPBcUoY6LXOpJPW494sAMx2Jv\
        UlqMtLMQVHJVDoO7UQUeR3mVqs0gX9wrJhMi7FYj8Xfg4igPi3HF2Pyl8aMLTuxyfgOpBnVvg37qQWT4mRax1Q1OMcIn4vd7caS7\
        cOn3VYcEeaEkbKQQPfsM91t7Yj6mEUXVwqIoSSXKlQ==";

    #[test]
    fn a_certificate_gives_its_serial_number_and_its_key() {
        let certificate = Certificate::from_pem(EXAMPLE.as_bytes()).unwrap();
        assert_eq!(certificate.serial, "B1C2D3E4F5061728394A5B6C7D8E9F0A1B2C3D");
        assert_eq!(plain_serial(&certificate.serial), plain_serial("00b1c2d3e4f5061728394a5b6c7d8e9f0a1b2c3d"));
        let signature = BASE64_STANDARD.decode(SIGNATURE).unwrap();
        assert!(certificate.key.verifies(b"message", &signature));
        assert!(!certificate.key.verifies(b"massage", &signature));
    }

    #[test]
    fn what_is_no_certificate_is_refused_with_its_reason() {
        let fault = |text: &str| Certificate::from_pem(text.as_bytes()).unwrap_err();
        assert_eq!(fault(""), BadCertificate::NotPem);
        assert_eq!(fault(&EXAMPLE.replace("CERTIFICATE", "PUBLIC KEY")), BadCertificate::NotPem);
        assert_eq!(fault("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"), BadCertificate::Unreadable);
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_a_certificate_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut der = CertificateDer::from_pem_slice(EXAMPLE.as_bytes()).unwrap().to_vec();
            let (at, cut) = (at.index(der.len()), cut.index(der.len()));
            der[at] = byte;
            for der in [&der[..], &der[..cut]] {
                let text = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", BASE64_STANDARD.encode(der));
                let _ = Certificate::from_pem(text.as_bytes());
            }
        }
    }
}
