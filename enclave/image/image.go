// Package image says what the enclave's image consists of.
//
//	boot ramdisk         init                      cmd/mrgc-enclave-init
//	                     modules/*.ko.xz           what the kernel has not built in: NSM, vsock
//	application ramdisk  mrgc-enclave              cmd/mrgc-enclave
//	                     etc/mrgc/arguments        its flags, one a line
//	                     etc/mrgc/parent-cid       vsock's number of the parent
//	                     etc/mrgc/tenants.pub      the key that verifies lists of tenants
//	                     etc/mrgc/identity-roots   whom the cluster's certificates are signed by
//
// All that decides whom the enclave trusts is inside, hence measured. What the
// parent brings when it runs is signed by those (certificate, tenants) or is not
// the enclave's to trust (AWS credentials).
//
// The package is pure: the same parts give the same bytes.
package image

import (
	"cmp"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/dsse"
	"github.com/mrgc/mrgc/internal/eif"
	"github.com/mrgc/mrgc/internal/seal"
)

// DefaultCommandLine has the kernel reset when it panics, which ends the
// enclave, and write to its console. It has no word for an init: the kernel's
// default is /init.
const DefaultCommandLine = "reboot=k panic=1 console=ttyS0 loglevel=4"

// NitroParentCID is the parent's context id as an enclave on Nitro sees it (AWS
// Nitro Enclaves user guide, "Nitro Enclaves concepts").
const NitroParentCID = 3

// Ports by which enclave and parent reach each other.
const (
	portRequests = 5000 // of the enclave; the others are the parent's
	portEngine   = 5001
	portKMS      = 5002
	portIdentity = 5003
	portDynamoDB = 5004
)

// Config is what an image is made of. Fields without a default are required.
type Config struct {
	Kernel      []byte // bzImage of x86-64
	CommandLine string // default: [DefaultCommandLine]
	// Modules are the kernel's, by file name; they are loaded in the order of
	// their names. None: all is built in.
	Modules map[string][]byte

	Init    []byte // cmd/mrgc-enclave-init, static
	Enclave []byte // cmd/mrgc-enclave, static

	Model         string
	TenantsKey    []byte // PEM
	IdentityRoots []byte // PEM
	EngineHosts   []byte // JSON of [attest.ParseHosts]: where alone the engine may run; nil: anywhere
	KMSRegion     string // of AWS; empty: KMS is not asked
	Fleet         Fleet  // without a name: of none
	ParentCID     uint32 // default: [NitroParentCID]

	Name, Version string // for people; not measured
}

// Fleet is one that the enclave holds keys together with. All of it is measured.
type Fleet struct {
	Name          string
	KMSKey, Table string // ARNs of the KMS key of its seeds, and of its DynamoDB table
}

// Build puts an image together.
func Build(c Config) (eif.Image, error) {
	if err := c.check(); err != nil {
		return eif.Image{}, fmt.Errorf("enclave image: %w", err)
	}
	boot := []eif.File{{Path: "init", Mode: 0o755, Content: c.Init}}
	for name, content := range c.Modules {
		boot = append(boot, eif.File{Path: "modules/" + name, Mode: 0o644, Content: content})
	}
	bootDisk, err := eif.Ramdisk(boot...)
	if err != nil {
		return eif.Image{}, fmt.Errorf("enclave image: %w", err)
	}
	files := []eif.File{
		{Path: "mrgc-enclave", Mode: 0o755, Content: c.Enclave},
		{Path: "etc/mrgc/arguments", Mode: 0o644, Content: []byte(strings.Join(c.arguments(), "\n") + "\n")},
		{Path: "etc/mrgc/parent-cid", Mode: 0o644, Content: fmt.Appendln(nil, c.parentCID())},
		{Path: "etc/mrgc/tenants.pub", Mode: 0o644, Content: c.TenantsKey},
		{Path: "etc/mrgc/identity-roots", Mode: 0o644, Content: c.IdentityRoots},
	}
	if c.EngineHosts != nil {
		files = append(files, eif.File{Path: "etc/mrgc/engine-hosts.json", Mode: 0o644, Content: c.EngineHosts})
	}
	application, err := eif.Ramdisk(files...)
	if err != nil {
		return eif.Image{}, fmt.Errorf("enclave image: %w", err)
	}
	metadata, err := c.metadata()
	if err != nil {
		return eif.Image{}, fmt.Errorf("enclave image: %w", err)
	}
	return eif.Image{
		Kernel: c.Kernel, CommandLine: cmp.Or(c.CommandLine, DefaultCommandLine),
		Ramdisks: [][]byte{bootDisk, application}, Metadata: metadata,
	}, nil
}

func (c Config) parentCID() uint32 { return cmp.Or(c.ParentCID, NitroParentCID) }

// arguments are mrgc-enclave's flags.
func (c Config) arguments() []string {
	parent := func(port int) string {
		return "vsock://" + strconv.FormatUint(uint64(c.parentCID()), 10) + ":" + strconv.Itoa(port)
	}
	args := []string{
		"-listen", "vsock://:" + strconv.Itoa(portRequests), "-engine", parent(portEngine), "-nsm", "device:/dev/nsm",
		"-identity", parent(portIdentity), "-identity-roots", "/etc/mrgc/identity-roots",
		"-tenants-key", "/etc/mrgc/tenants.pub", "-model", c.Model, "-mode", c.mode(),
	}
	if c.EngineHosts != nil {
		args = append(args, "-engine-hosts", "/etc/mrgc/engine-hosts.json")
	}
	if c.KMSRegion != "" {
		args = append(args, "-kms", parent(portKMS), "-kms-region", c.KMSRegion)
	}
	if c.Fleet.Name != "" {
		args = append(args, "-fleet", c.Fleet.Name, "-fleet-kms-key", c.Fleet.KMSKey, "-fleet-table", c.Fleet.Table, "-dynamodb", parent(portDynamoDB))
	}
	return args
}

// mode is what the enclave says of itself: with a host that is measured, nobody can
// read what the engine sees.
func (c Config) mode() string {
	if c.EngineHosts != nil {
		return seal.ModeNitroAttestedHost
	}
	return seal.ModeNitro
}

// metadata are in the form of AWS's tools (aws-nitro-enclaves-image-format,
// EifIdentityInfo), without their times and host names.
func (c Config) metadata() ([]byte, error) {
	return json.Marshal(map[string]any{
		"ImageName": c.Name, "ImageVersion": c.Version,
		"BuildMetadata": map[string]string{
			"BuildTime": "1970-01-01T00:00:00Z", "BuildTool": "mrgc", "BuildToolVersion": "1", "OperatingSystem": "Linux", "KernelVersion": "",
		},
		"DockerInfo": map[string]any{}, "CustomMetadata": map[string]any{},
	})
}

func (c Config) check() error {
	for _, program := range []struct {
		name    string
		content []byte
	}{{"init", c.Init}, {"mrgc-enclave", c.Enclave}} {
		if err := checkStatic(program.content); err != nil {
			return fmt.Errorf("%s: %w", program.name, err)
		}
	}
	if len(c.Kernel) == 0 {
		return errors.New("no kernel")
	}
	for _, text := range []string{c.Model, c.KMSRegion, c.Fleet.Name, c.Fleet.KMSKey, c.Fleet.Table} {
		if strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return fmt.Errorf("%q: want no spaces and control characters", text)
		}
	}
	if fleet := c.Fleet; fleet != (Fleet{}) && (fleet.Name == "" || fleet.KMSKey == "" || fleet.Table == "" || c.KMSRegion == "") {
		return errors.New("a fleet needs a name, a KMS key, a table, and KMS's region")
	}
	if c.Model == "" {
		return errors.New("no model")
	}
	if c.EngineHosts != nil {
		if _, err := attest.ParseHosts(c.EngineHosts); err != nil {
			return err
		}
	}
	if _, err := dsse.ParseVerificationKeys(c.TenantsKey); err != nil {
		return fmt.Errorf("key that verifies tenants: %w", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(c.IdentityRoots) {
		return errors.New("roots of the cluster's identities: no certificate in PEM")
	}
	return nil
}
