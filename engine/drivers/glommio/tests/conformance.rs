//! The suite that every driver passes.

use ringseed_engine::IoDriver;
use ringseed_engine::driver_suite;

driver_suite!(real glommio, IoDriver::External(ringseed_driver_glommio::DRIVER));
