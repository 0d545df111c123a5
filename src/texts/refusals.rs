//! What a buyer reads of a refusal: one line a kind that a sale's page may meet.

use crate::error::{Kind, Words};
use crate::platform::lang::Lang;

/// The refusals in a language.
pub fn refusals(lang: Lang) -> Words {
    match lang {
        Lang::Zh => |kind| refusal(kind, Lang::Zh),
        Lang::En => |kind| refusal(kind, Lang::En),
    }
}

/// A refusal in a language.
pub fn refusal(kind: Kind, lang: Lang) -> &'static str {
    let (zh, en) = both(kind);
    match lang {
        Lang::Zh => zh,
        Lang::En => en,
    }
}

/// A kind that no page of a sale meets has its title, and in Chinese that something did not work.
fn both(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Unauthenticated => ("请先登录", "Please log in first"),
        Kind::TokenInvalid => ("登录已失效，请重新登录", "Please log in again"),
        Kind::TokenExpired => ("登录已过期，请重新登录", "Your login has expired, please log in again"),
        Kind::LoginOver => ("登录已结束，请重新登录", "Your login is over, please log in again"),
        Kind::Forbidden => ("没有权限", "You may not do this"),
        Kind::NotFound => ("活动或任务不存在", "There is no such sale or task"),
        Kind::MethodNotAllowed => ("请求方式不支持", "This cannot be asked for in this way"),
        Kind::RequestTimeout => ("请求超时，请重试", "The request took too long, please try again"),
        Kind::AlreadyOwned => ("已拥有该课程", "The course is already yours"),
        Kind::OrderExpired => ("订单已超时取消", "The time to pay the order is over"),
        Kind::OrderCancelled => ("订单已取消", "The order was cancelled"),
        Kind::OrderRefunded => ("订单已退款", "The order was refunded"),
        Kind::NotStarted => ("活动还没有开始", "The sale has not started yet"),
        Kind::SoldOut => ("已售罄", "Sold out"),
        Kind::LimitReached => ("已达到限购次数", "You have had all your tries in this sale"),
        Kind::Ended => ("活动已结束", "The sale is over"),
        Kind::BodyTooLarge => ("请求内容过大", "The request is too large"),
        Kind::NotJson => ("请求格式不支持", "The request is not JSON"),
        Kind::HostInvalid | Kind::MalformedJson | Kind::BodyIncomplete | Kind::Invalid => {
            ("请求无效", "The request is not valid")
        }
        Kind::TooManyAttempts => ("操作太频繁，请稍后再试", "Too many tries, please wait a little"),
        Kind::Internal => ("服务出错，请稍后再试", "Something went wrong on our side, please try again later"),
        Kind::Unavailable => ("服务暂时不可用，请稍候", "The service cannot answer now, please wait a little"),
        Kind::Overloaded => ("当前人数较多，请稍候", "Many people are here now, please wait a little"),
        Kind::Timeout => ("请求超时，请稍候", "This takes long, please wait a little"),
        other => ("请求未能完成", other.title()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_that_a_sales_page_meets_has_words_of_its_own() {
        let met = [400, 401, 404, 405, 408, 410, 413, 415, 429, 500];
        let by_name =
            ["already_owned", "order_expired", "order_cancelled", "order_refunded", "not_started", "sold_out"];
        let more = ["limit_reached", "validation_failed", "unavailable", "overloaded", "timeout"];
        // What only other pages meet.
        let elsewhere = ["idempotency_key", "callback", "wrong_credentials", "refresh_token"];
        for kind in Kind::ALL {
            let name = kind.name();
            let listed = by_name.contains(&name) || more.contains(&name) || met.contains(&kind.status().as_u16());
            if !listed || elsewhere.iter().any(|start| name.starts_with(start)) {
                continue;
            }
            let (zh, en) = both(*kind);
            assert!(zh != "请求未能完成" && !zh.is_ascii() && en.is_ascii(), "{name}: {zh} {en}");
        }
    }

    #[test]
    fn a_page_goes_on_waiting_only_where_that_may_help() {
        let waits: Vec<&str> = Kind::ALL.iter().filter(|kind| kind.code() == 102).map(|kind| kind.name()).collect();
        assert_eq!(waits, ["too_many_attempts", "unavailable", "overloaded", "timeout"]);
        assert!(Kind::ALL.iter().all(|kind| [101, 102].contains(&kind.code())));
    }
}
