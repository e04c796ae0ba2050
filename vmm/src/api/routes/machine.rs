//! vCPUs, memory, kernel, and whether the machine runs.

use std::time::Instant;

use axum::extract::State;
use vmgenie_api::wire;

use super::{Answer, Api, Json, NoBody, deprecated, ok};
use crate::api::convert::{Checked, Convert, patched};
use crate::api::fault::ApiFault;
use crate::controller::command::{Command, Reply};
use crate::metrics::METRICS;

/// The whole configuration.
#[utoipa::path(get, path = "/vm/config", responses((status = 200, body = wire::FullConfig), (status = 400, body = wire::Fault)))]
pub(super) async fn full_config(State(api): Api, _: NoBody) -> Answer {
    Ok(ok(&Convert::<wire::FullConfig>::convert(
        api.config().await?,
    )))
}

/// vCPUs and memory.
#[utoipa::path(get, path = "/machine-config", responses(
    (status = 200, body = wire::MachineConfiguration), (status = 400, body = wire::Fault)
))]
pub(super) async fn machine_config(State(api): Api, _: NoBody) -> Answer {
    Ok(ok(&Convert::<wire::MachineConfiguration>::convert(
        api.config().await?.machine,
    )))
}

/// Sets vCPUs and memory; before the start only.
#[utoipa::path(put, path = "/machine-config", request_body = wire::MachineConfiguration, responses(
    (status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) async fn put_machine_config(
    State(api): Api,
    Json(body): Json<wire::MachineConfiguration>,
) -> Answer {
    let old = body.cpu_template.is_some();
    let config = body.checked()?;
    let _alone = api.machine_config.lock().await;
    deprecated(old, api.done(Command::SetMachineConfig(config)).await)
}

/// Changes vCPUs or memory; before the start only.
#[utoipa::path(patch, path = "/machine-config", request_body = wire::MachineConfigurationPatch, responses(
    (status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) async fn patch_machine_config(
    State(api): Api,
    Json(body): Json<wire::MachineConfigurationPatch>,
) -> Answer {
    let old = body.cpu_template.is_some();
    let _alone = api.machine_config.lock().await;
    let config = patched(body, api.config().await?.machine)?;
    deprecated(old, api.done(Command::SetMachineConfig(config)).await)
}

/// The guest's identity string. Ours.
#[utoipa::path(get, path = "/instance-data", responses((status = 200, body = wire::InstanceData), (status = 400, body = wire::Fault)))]
pub(super) async fn instance_data(State(api): Api, _: NoBody) -> Answer {
    match api.handle.call(Command::InstanceData).await? {
        Reply::InstanceData(data) => Ok(ok(&wire::InstanceData { data: data.into() })),
        _ => Err(ApiFault::UnexpectedReply(
            "the question for the instance data",
        )),
    }
}

/// Sets that string, before the start or later; the guest's next read has it. Ours.
#[utoipa::path(put, path = "/instance-data", request_body = wire::InstanceData, responses(
    (status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) async fn put_instance_data(
    State(api): Api,
    Json(body): Json<wire::InstanceData>,
) -> Answer {
    api.done(body.checked()?).await
}

/// Sets kernel, initrd and command line; before the start only.
#[utoipa::path(put, path = "/boot-source", request_body = wire::BootSourceBody, responses(
    (status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) async fn put_boot_source(
    State(api): Api,
    Json(body): Json<wire::BootSourceBody>,
) -> Answer {
    api.done(Command::SetBootSource(body.checked()?)).await
}

/// Starts the machine, writes the metrics, or presses the power button.
#[utoipa::path(put, path = "/actions", request_body = wire::Action, responses(
    (status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) async fn put_action(State(api): Api, Json(body): Json<wire::Action>) -> Answer {
    api.done(Command::from(body)).await
}

/// Stops all vCPUs, or lets them go on.
#[utoipa::path(patch, path = "/vm", request_body = wire::VmUpdate, responses(
    (status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) async fn patch_vm(State(api): Api, Json(body): Json<wire::VmUpdate>) -> Answer {
    let latency = match body.state {
        wire::TargetState::Paused => &METRICS.latencies_us.pause_vm,
        wire::TargetState::Resumed => &METRICS.latencies_us.resume_vm,
    };
    let begun = Instant::now();
    let answer = api.done(Command::from(body)).await?;
    latency.set_since(begun);
    Ok(answer)
}
