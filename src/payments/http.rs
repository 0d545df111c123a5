//! Routes of payments: pay and cancel an order, and what gateways and browsers call back.

pub mod admin;
pub mod orders;

use axum::Json as Reply;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::{Channel, Closed, Gateway, JsapiParams, PayWith, PaymentId, PaymentMethod, Settled, close_order, gateway};
use crate::app::App;
use crate::auth::{ClientIp, LiveUser};
use crate::error::{Kind, Problem, Result, refuse};
use crate::orders::{Closing, Order, OrderId, Status};
use crate::platform::clock::At;
use crate::platform::described::AnyObject;
use crate::platform::extract::{Faults, FieldFault, Input, Inputs, Json, Path, Query, RawBody, Shape};

/// How to pay.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "gateway": "sandbox", "channel": "page" }))]
pub struct PayRequest {
    /// The gateway, where it is switched on.
    #[garde(length(min = 1, max = 16))]
    #[schema(value_type = Gateway, example = "sandbox")]
    pub gateway: String,
    /// The way to pay there; the gateway's first one by default. `alipay`: `page`, `qr`; `wechat`: `native`, `jsapi`, `h5`;
    /// `stripe`: `checkout`; `sandbox`: `page`.
    #[garde(inner(length(min = 1, max = 16)))]
    #[schema(value_type = Option<Channel>, example = "page")]
    pub channel: Option<String>,
    /// Who pays, by WeChat's id of that person for the application: for the channel `jsapi`, and only for it.
    #[garde(inner(length(min = 1, max = 128), ascii))]
    #[schema(min_length = 1, max_length = 128)]
    pub openid: Option<String>,
}

impl PayRequest {
    /// The gateway and the way to pay there.
    fn way(&self, app: &App) -> Result<(Gateway, Channel), Vec<FieldFault>> {
        let Some(gateway) = gateway::named(app, &self.gateway) else {
            return Err(vec![FieldFault::new("gateway", "is not a payment gateway that is switched on")]);
        };
        let known = gateway.channels();
        let wanted = match &self.channel {
            None => known.first(),
            Some(name) => known.iter().find(|channel| channel.as_str() == name),
        };
        let Some(&channel) = wanted else {
            let names: Vec<&str> = known.iter().map(|channel| channel.as_str()).collect();
            return Err(vec![FieldFault::new("channel", format!("must be one of: {}", names.join(", ")))]);
        };
        match (&self.openid, channel) {
            (None, Channel::Jsapi) => Err(vec![FieldFault::new("openid", "is required for this channel")]),
            (Some(_), channel) if channel != Channel::Jsapi => {
                Err(vec![FieldFault::new("openid", "does not go with this channel")])
            }
            _ => Ok((gateway, channel)),
        }
    }
}

impl Shape<App> for PayRequest {
    fn together(&self, app: &App, faults: &mut Faults) {
        faults.extend(self.way(app).err().unwrap_or_default());
    }
}

/// A payment to go on with: one of `pay_url`, `qr` and `jsapi`, by the channel.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PayView {
    /// The payment's number.
    pub payment_no: PaymentId,
    /// Where it is paid.
    pub gateway: Gateway,
    /// Which way.
    pub channel: Channel,
    /// The page on which the buyer pays.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub pay_url: Option<String>,
    /// The text of the QR code that the buyer scans.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub qr: Option<String>,
    /// What WeChat's own browser or a mini program is called with.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub jsapi: Option<JsapiParams>,
    /// Nobody can pay after this.
    pub expires_at: At,
}

impl PayView {
    fn new(gateway: Gateway, channel: Channel, started: super::Started) -> Self {
        let super::Started { payment_no, with, expires_at } = started;
        let blank = Self { payment_no, gateway, channel, pay_url: None, qr: None, jsapi: None, expires_at };
        match with {
            PayWith::Url(url) => Self { pay_url: Some(url), ..blank },
            PayWith::Qr(text) => Self { qr: Some(text), ..blank },
            PayWith::Jsapi(params) => Self { jsapi: Some(*params), ..blank },
        }
    }
}

/// Starts to pay an order, or goes on with the payment that is under way at the gateway.
#[utoipa::path(
    post,
    path = "/orders/{no}/pay",
    operation_id = "pay_order",
    tag = "payments",
    security(("bearer" = [])),
    params(("no" = OrderId, Path, description = "The order's number")),
    request_body = PayRequest,
    responses(
        (status = 200, body = PayView, description = "Where the buyer pays; the same again while the payment is under way"),
        (status = 404, description = "`not_found`: no order of yours"),
        (status = 409, description = "`order_state` (not unpaid), `order_expired`, `already_owned`, `amount_too_large` (with `max_fen` and `gateways`)"),
        (status = 503, description = "`gateway_unavailable`: ask again, the payment goes on; or the service cannot answer now"),
    )
)]
pub async fn pay(
    State(app): State<App>,
    LiveUser(user): LiveUser,
    ClientIp(address): ClientIp,
    Inputs(Path(order), Json(request)): Inputs<Path<OrderId>, Json<PayRequest>>,
) -> Result<Reply<PayView>> {
    let (gateway, channel) = request.way(&app)?;
    let address = address.filter(|_| channel == Channel::H5).map(|address| address.to_string());
    let way = PaymentMethod { gateway, channel, openid: request.openid, address };
    let started = super::pay(&app, user.id, order, &way).await?;
    Ok(Reply(PayView::new(gateway, channel, started)))
}

/// An order's status.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct OrderStatusView {
    /// The order's number.
    pub order_no: OrderId,
    /// Where it is in its life.
    pub status: Status,
    /// The same as a number.
    pub status_code: i8,
}

impl OrderStatusView {
    fn new(order_no: OrderId, status: Status) -> Self {
        Self { order_no, status, status_code: status.code() }
    }
}

/// Cancels an unpaid order. What it held goes back; a repeat is answered the same.
#[utoipa::path(
    post,
    path = "/orders/{no}/cancel",
    operation_id = "cancel_order",
    tag = "orders",
    security(("bearer" = [])),
    params(("no" = OrderId, Path, description = "The order's number")),
    responses(
        (status = 200, body = OrderStatusView, description = "It is cancelled"),
        (status = 404, description = "`not_found`: no order of yours"),
        (status = 409, description = "`order_state`: it is paid (perhaps just now) or timed out; `order_status` says which. `gateway_off`: a payment was started at a gateway that is switched off now"),
        (status = 503, description = "`gateway_unavailable`: a payment was started and its gateway cannot be asked now; or the service cannot answer now"),
    )
)]
pub async fn cancel(
    State(app): State<App>,
    LiveUser(user): LiveUser,
    Input(Path(order)): Input<Path<OrderId>>,
) -> Result<Reply<OrderStatusView>> {
    crate::orders::find_own(&app, user.id, order).await?.ok_or(Kind::NotFound)?;
    match close_order(&app, order, Closing::Cancelled).await? {
        Closed::Now | Closed::Was(Status::Cancelled) => Ok(Reply(OrderStatusView::new(order, Status::Cancelled))),
        Closed::Was(status) => Err(refuse(Kind::OrderState, format!("the order is {}", status.name()))
            .with("order_status", status.name())
            .into()),
        Closed::NotDue(_) => Err(Kind::OrderState.into()),
    }
}

/// A gateway's notify. Its headers, body and answer are the gateway's own; only a message whose signature holds is read.
#[utoipa::path(
    post,
    path = "/payments/{gateway}/notify",
    operation_id = "receive_notification",
    tag = "payments",
    params(("gateway" = Gateway, Path, description = "The gateway")),
    request_body(content = String, content_type = "application/json", description = "As the gateway signed it, byte for byte"),
    responses(
        (status = 200, body = String, content_type = "text/plain", description = "The gateway's word for yes (`success`): handled, now or before"),
        (status = 204, description = "WeChat Pay's yes"),
        (status = 400, description = "The gateway's word for no (`failure`; `FAIL` in JSON for WeChat Pay; Stripe reads the status alone): a header is missing, the signature does not hold, or it is too old. The log says which", content(
            (String = "text/plain"), (AnyObject = "application/json")
        )),
        (status = 404, description = "The gateway's word for no (`failure`; `FAIL` in JSON for WeChat Pay): there is no such payment yet; or `not_found`: no such gateway", content(
            (String = "text/plain"), (AnyObject = "application/json"), (Problem = "application/problem+json")
        )),
        (status = 422, description = "The gateway's word for no (as for 404): it does not fit the payment and is kept for a person; or the path is not valid", content(
            (String = "text/plain"), (AnyObject = "application/json"), (Problem = "application/problem+json")
        )),
    )
)]
pub async fn notify(
    State(app): State<App>,
    headers: HeaderMap,
    Inputs(Path(name), RawBody(body)): Inputs<Path<String>, RawBody>,
) -> Result<Response> {
    let gateway = gateway::named(&app, &name).ok_or(Kind::NotFound)?;
    Ok(match super::notified(&app, gateway, &headers, &body).await {
        Ok(Settled::Unknown) => gateway::no(gateway, StatusCode::NOT_FOUND),
        Ok(Settled::Flagged) => gateway::no(gateway, Kind::CallbackFlagged.status()),
        Ok(_) => gateway::yes(gateway),
        // Whoever sent it is told nothing more: why is in the log.
        Err(error) if error.kind() == Kind::CallbackInvalid => gateway::no(gateway, error.kind().status()),
        Err(error) => return Err(error),
    })
}

/// What a browser brings back from a gateway. SilentGateways add parameters of their own: they are not read.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ReturnQuery {
    /// The payment's number. Alipay brings it as `out_trade_no`.
    #[garde(skip)]
    #[serde(alias = "out_trade_no")]
    #[param(value_type = String, pattern = "^[0-9a-f]{32}$")]
    pub payment_no: PaymentId,
}

impl Shape<App> for ReturnQuery {}

/// What a browser that comes back from a gateway is answered.
#[derive(Debug)]
pub enum Back {
    /// It is led to the shop's page, with the order's number and status.
    Page(Url),
    /// The shop has no such page: the order's status.
    Status(OrderStatusView),
}

impl Back {
    /// The page is the settings' alone, so nobody is led elsewhere by an address that was made for him.
    fn of(order: &Order, page: Option<&Url>) -> Self {
        let Some(mut page) = page.cloned() else { return Self::Status(OrderStatusView::new(order.id, order.status)) };
        page.query_pairs_mut()
            .append_pair("order_no", &order.id.to_string())
            .append_pair("status", order.status.name());
        Self::Page(page)
    }
}

impl IntoResponse for Back {
    fn into_response(self) -> Response {
        let answer = match self {
            Self::Page(page) => Redirect::to(page.as_str()).into_response(),
            Self::Status(status) => Reply(status).into_response(),
        };
        // The same address answers otherwise a moment later, when the money has come.
        ([(header::CACHE_CONTROL, "no-store")], answer).into_response()
    }
}

/// Where the buyer's browser comes back to: it is led on to the shop's own page where the settings name one. What it brings
/// along decides nothing: the status is ours, or the gateway's answer to our own question.
#[utoipa::path(
    get,
    path = "/payments/{gateway}/return",
    operation_id = "return_from_gateway",
    tag = "payments",
    params(("gateway" = Gateway, Path, description = "The gateway"), ReturnQuery),
    responses(
        (status = 200, body = OrderStatusView, description = "The order that the payment is for, where the settings name no page of the shop"),
        (status = 303, description = "To the shop's page (`ONRUSH_PAYMENTS__RETURN_PAGE`), with `order_no` and `status` as query parameters",
            headers(("Location" = String, description = "That page"))),
        (status = 404, description = "`not_found`: no such gateway or payment"),
    )
)]
pub async fn returned(
    State(app): State<App>,
    Inputs(Path(name), Query(query)): Inputs<Path<String>, Query<ReturnQuery>>,
) -> Result<Back> {
    // Also one that was switched off while the buyer was on its page: the status is ours.
    let gateway: Gateway = name.parse().map_err(|_| Kind::NotFound)?;
    let order = super::returned(&app, gateway, query.payment_no).await?;
    Ok(Back::of(&order, app.config.payments.return_page.as_ref()))
}
