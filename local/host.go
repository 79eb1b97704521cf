package local

import (
	"context"
	"encoding/json"
	"fmt"
	"net"

	"golang.org/x/sync/errgroup"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/standin/softnsm"
)

// hostImage stands for the attestable AMI of instances. Nothing measures this
// machine: the software NitroTPM says of it what it is told here.
func hostImage() attest.Host {
	return attest.Host{Name: "this machine, not measured", PCRs: attest.PCRs{
		4: attest.ExtendedPCR([]byte("mrgc up")), 12: make([]byte, len(attest.ExtendedPCR(nil))),
	}}
}

// hostImages is the file of those that enclaves trust.
func hostImages() ([]byte, error) {
	return json.MarshalIndent([]attest.Host{hostImage()}, "", "  ")
}

// serveTPM is an instance's software NitroTPM.
func serveTPM(ctx context.Context, group *errgroup.Group, root *softnsm.Root, in instance) error {
	module, err := softnsm.New(softnsm.Config{Root: root, Region: in.aws, InstanceID: in.id, Host: hostImage().PCRs})
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", in.tpm)
	if err != nil {
		return fmt.Errorf("software NitroTPM: %w", err)
	}
	group.Go(func() error { return module.Serve(ctx, listener) })
	return nil
}
