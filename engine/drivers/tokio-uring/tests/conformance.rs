//! The suite that every driver passes.

use ringseed_engine::IoDriver;
use ringseed_engine::driver_suite;

driver_suite!(real tokio_uring, IoDriver::External(ringseed_driver_tokio_uring::DRIVER));
