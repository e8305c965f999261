module github.com/kanister-kopia/kanister-kopia/test/cluster

go 1.26.0
