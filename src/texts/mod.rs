//! What people read, in Chinese and in English.

mod refusals;

pub use refusals::{refusal, refusals};

use crate::platform::lang::Lang;

/// A submission was taken on.
pub const fn queued(lang: Lang) -> &'static str {
    match lang {
        Lang::Zh => "正在排队",
        Lang::En => "You are in the queue",
    }
}

/// A submission waits, and so many are before it.
pub fn waiting(lang: Lang, ahead: u64) -> String {
    match lang {
        Lang::Zh => format!("还在排队，前面还有 {ahead} 人"),
        Lang::En => format!("Still in the queue, {ahead} ahead of you"),
    }
}

/// A submission has an order.
pub const fn won(lang: Lang) -> &'static str {
    match lang {
        Lang::Zh => "抢购成功",
        Lang::En => "You got it",
    }
}

/// A submission came to nothing, by nobody's word.
pub const fn lost(lang: Lang) -> &'static str {
    match lang {
        Lang::Zh => "抢购失败",
        Lang::En => "It did not work out",
    }
}

/// A submission was taken back.
pub const fn taken_back(lang: Lang) -> &'static str {
    match lang {
        Lang::Zh => "已取消",
        Lang::En => "Taken back",
    }
}
