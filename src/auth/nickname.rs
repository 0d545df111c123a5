//! Nicknames that nobody may choose: who reads one of them would think that the shop speaks.
//!
//! What is compared is what a person sees: letters that look alike are one letter (Unicode's confusables), whatever
//! script they are of, and what stands between letters does not count.

use unicode_normalization::UnicodeNormalization;
use unicode_security::confusable_detection::skeleton;

use crate::platform::spelling::is_visible;

/// Reserved as a whole, as a word of a nickname, and with a number behind it.
const WORDS: [&str; 25] = [
    "admin",
    "admins",
    "administrator",
    "administrators",
    "sysadmin",
    "moderator",
    "operator",
    "official",
    "support",
    "helpdesk",
    "service",
    "customerservice",
    "system",
    "staff",
    "root",
    "security",
    "onrush",
    "系统",
    "系統",
    "运营",
    "運營",
    "站长",
    "站長",
    "版主",
    "平台",
];

/// Reserved wherever they stand: Chinese has no blanks between words.
const ANYWHERE: [&str; 8] = ["管理员", "管理員", "官方", "客服", "系统通知", "系統通知", "administrator", "onrush"];

/// Whether a nickname is, or looks like, one that only the shop may have.
pub(super) fn is_reserved(nickname: &str) -> bool {
    let whole = folded(nickname);
    let bare = |text: &str| text.trim_end_matches(|c: char| c.is_numeric()).to_owned();
    let is_word = |text: &str| {
        let (text, bare) = (folded(text), bare(text));
        WORDS.iter().any(|word| text == folded(word) || folded(&bare) == folded(word))
    };
    let words = nickname.split(|c: char| is_visible(c) && !c.is_alphanumeric() || c.is_whitespace());
    ANYWHERE.iter().any(|word| whole.contains(&folded(word))) || is_word(nickname) || words.into_iter().any(is_word)
}

/// What a text looks like: its letters and digits alone, in one width, one case and one of each that look alike.
fn folded(text: &str) -> String {
    let small: String = text.nfkc().flat_map(char::to_lowercase).filter(|c| c.is_alphanumeric()).collect();
    skeleton(&small).flat_map(char::to_lowercase).map(|c| if matches!(c, 'l' | '1' | '|') { 'i' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_the_shop_is_reserved() {
        for bad in [
            "admin",
            "Admin",
            "ＡＤＭＩＮ",
            "аdmin",
            "аdmіn",
            "a d m i n",
            "_admin_",
            "admin01",
            "shop admin",
            "admin-team",
            "adm\u{200B}in",
            "adm1n",
            "Administrator7",
            "管理员",
            "管理員",
            "系统管理员",
            "官方",
            "官方旗舰店",
            "客服小王",
            "客 服",
            "客\u{200B}服",
            "系统",
            "system",
            "ѕystem",
            "onrush",
            "OnRush 助手",
            "оnrush",
            "0nrush",
            "root",
            "r00t",
        ] {
            assert!(is_reserved(bad), "{bad}");
        }
    }

    #[test]
    fn other_people_have_their_names() {
        for good in [
            "小明",
            "badminton",
            "系统架构师",
            "alice",
            "Roots & Co",
            "mastermind",
            "学员3f9a2c",
            "李平台风",
            "平凡",
            "服务员",
            "1",
            "😀",
            "supporter",
            "ecosystem",
        ] {
            assert!(!is_reserved(good), "{good}");
        }
    }
}
