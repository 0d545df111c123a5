//! The payment gateways of the tests: each a server of its own, as strict as the real one.

pub mod alipay;
pub mod stripe;
pub mod wechat;
