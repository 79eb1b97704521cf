package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/mrgc/mrgc/controller/accelerator"
	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/fleet"
)

// Children are the cluster's processes that run now: process ids by name, such as
// "parent-use1-0".
func (c *Cluster) Children() (map[string]int, error) {
	content, err := os.ReadFile(filepath.Join(c.stateDir, "processes.json"))
	if err != nil {
		return nil, err
	}
	var children map[string]int
	return children, json.Unmarshal(content, &children)
}

// Accelerator opens the accelerator of a cluster that was started with --accelerator,
// as its operator would. Whoever calls it closes it.
func (c *Cluster) Accelerator(ctx context.Context) (*accelerator.Accelerator, error) {
	content, err := os.ReadFile(filepath.Join(c.stateDir, "accelerator.env"))
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	for line := range strings.Lines(string(content)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "export ")), "="); ok {
			values[name] = value
		}
	}
	env, err := c.Env()
	if err != nil {
		return nil, err
	}
	at, err := awsclient.ParseAddress(env["MRGC_ACCELERATOR"])
	if err != nil {
		return nil, fmt.Errorf("MRGC_ACCELERATOR: %w", err)
	}
	at.Credentials = credentials.NewStaticCredentialsProvider(values["AWS_ACCESS_KEY_ID"], values["AWS_SECRET_ACCESS_KEY"], "")
	names := map[string]fleet.Region{}
	for _, region := range []fleet.Region{"use1", "use2", "usw2"} {
		names[region.AWS()] = region
	}
	return accelerator.Open(ctx, accelerator.Config{Settings: at.Settings, Listener: at.Name, Regions: names})
}
