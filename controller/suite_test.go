package controller_test

import (
	"os"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

// TestMain lets the test binary be a controller's process.
func TestMain(m *testing.M) {
	if address := os.Getenv(processEnv); address != "" {
		os.Exit(runProcess(address))
	}
	os.Exit(m.Run())
}

func TestController(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "controller")
}
