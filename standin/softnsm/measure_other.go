//go:build !linux

package softnsm

import (
	"errors"
	"net"

	"github.com/mrgc/mrgc/internal/attest"
)

func (m *measurer) peer(net.Conn) (attest.PCRs, error) {
	return nil, errors.New("the software NSM can measure processes on Linux only; run the cluster in a Linux container or virtual machine")
}
