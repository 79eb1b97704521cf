package gpu

import "github.com/mrgc/mrgc/internal/loadreport"

// Sum is sum of GPUs that are {busy in percent, bytes used, bytes, °C}.
func Sum(readings ...[4]uint64) loadreport.GPU {
	var devices []device
	for _, r := range readings {
		devices = append(devices, device{uint32(r[0]), r[1], r[2], uint32(r[3])})
	}
	return sum(devices)
}
