// SPDX-License-Identifier: Apache-2.0

package function_test

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/pkg/function"
)

// greet is a function of another program. Its main is:
//
//	func main() { controller.Main(greet{}) }
type greet struct{}

func (greet) Name() string           { return "Greet" }
func (greet) RequiredArgs() []string { return []string{"name"} }
func (greet) Arguments() []string    { return []string{"name", "greeting"} }

// Resumable: greeting twice does no harm.
func (greet) Resumable() bool { return true }

func (greet) Exec(ctx context.Context, call function.Call) (map[string]any, error) {
	greeting, ok := call.Args["greeting"].(string)
	if !ok {
		greeting = "hello"
	}
	call.Log.Info("greeting", "name", call.Args["name"])
	call.Progress(api.Progress{Bytes: 1, EstimatedBytes: 1})
	return map[string]any{"text": fmt.Sprint(greeting, ", ", call.Args["name"])}, ctx.Err()
}

// A registry of a function of another program; controller.Main makes one of these and
// the project's own.
func ExampleFunc() {
	functions := function.NewRegistry(greet{})
	f, err := functions.Get("Greet")
	if err != nil {
		fmt.Println(err)
		return
	}
	output, err := f.Exec(context.Background(), function.Call{
		Args: map[string]any{"name": "world"}, Log: slog.New(slog.DiscardHandler), Progress: func(api.Progress) {},
	})
	fmt.Println(output["text"], err)
	_, err = functions.Get("greet")
	fmt.Println(err)
	// Output:
	// hello, world <nil>
	// Requested function {greet} has not been registered
}
