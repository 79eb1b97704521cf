//go:build !linux

package nsm

import "errors"

func openDevice(string) (Module, error) {
	return nil, errors.New("nsm: enclaves run Linux: this system has no such device")
}
