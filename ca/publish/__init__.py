"""ca.publish: copies of the trust bundle where others look for one."""
